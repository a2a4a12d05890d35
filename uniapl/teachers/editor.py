"""The editor: the best of n drafts, edited per constraint kind (`constraints.edits`) until every verifier passes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from uniapl.constraints import verify
from uniapl.constraints.edits import mend
from uniapl.records import Demonstration
from uniapl.seeding import stream
from uniapl.teachers.drafts import Draft, Order


# DEVIATION: teacher: an editor over the base model's own drafts instead of a 235B model.
def ranked(drafts: Sequence[Draft]) -> list[Draft]:
    """Best first: most constraints followed, not cut, closest to the median length in tokens, first drawn."""
    median = statistics.median(draft.num_tokens for draft in drafts)
    return sorted(drafts, key=lambda d: (-d.num_followed, d.truncated, abs(d.num_tokens - median), d.index))


def demonstrate(
    order: Order, drafts: Sequence[Draft], *, seed: int, max_tokens: int, count_tokens: Callable[[str], int]
) -> Demonstration | str:
    """The best draft that can be mended as a verified demonstration, or the reason why there is none."""
    unjudged = next((draft.status for draft in drafts if draft.status != "ok"), None)
    if unjudged is not None:
        return unjudged
    prompt = order.prompt
    for draft in ranked(drafts):
        rng = stream(seed, "mend", order.take, prompt.id, draft.index)
        mended = mend(
            prompt.constraints, draft.text.strip(), rng=rng, max_tokens=max_tokens, count_tokens=count_tokens,
            topic=prompt.topic,
        )  # fmt: skip
        if mended is None:
            continue
        verdict = verify(prompt.constraints, mended.text)
        if verdict.passed:
            return Demonstration(
                prompt_id=prompt.id,
                split=prompt.split,
                take=order.take,
                text=mended.text,
                original=draft.text,
                edits=mended.edits,
                followed=tuple(one is True for one in verdict.followed),
                num_tokens=count_tokens(mended.text),
                truncated=draft.truncated and not mended.edits,
            )
    return f"no draft of {len(drafts)} could be mended"
