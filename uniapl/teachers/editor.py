"""The editor: the best of n drafts, edited per constraint kind (`constraints.edits`) until every verifier passes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from uniapl.config import EditorSpec
from uniapl.constraints import verify
from uniapl.constraints.edits import mend
from uniapl.records import Demonstration, Prompt
from uniapl.seeding import stream
from uniapl.teachers.drafts import Draft, Order


def broken_off(prompt: Prompt, text: str) -> str:
    """The longest of a half, a quarter, ... of a text that violates a constraint; empty where none does.

    So that prompts which every draft follows, the easy ones, are not missing where answers are to be wrong.
    """
    words = text.split()
    while len(words) > 1:
        words = words[: len(words) // 2]
        if not verify(prompt.constraints, " ".join(words)).passed:
            return " ".join(words)
    return ""


# DEVIATION: teacher: an editor over the base model's own drafts instead of a 235B model.
def ranked(drafts: Sequence[Draft]) -> list[Draft]:
    """Best first: most constraints followed, not cut, closest to the median length in tokens, first drawn."""
    median = statistics.median(draft.num_tokens for draft in drafts)
    return sorted(drafts, key=lambda d: (-d.num_followed, d.truncated, abs(d.num_tokens - median), d.index))


def demonstrate(
    order: Order, drafts: Sequence[Draft], *, spec: EditorSpec, max_tokens: int, count_tokens: Callable[[str], int]
) -> Demonstration | str:
    """The demonstration that `spec.answers` asks for, or the reason why there is none.

    The best draft that can be mended, verified; or, unedited, the best draft (`best`) or the worst (`violating`), which
    is broken off where it follows every constraint.
    """
    unjudged = next((draft.status for draft in drafts if draft.status != "ok"), None)
    if unjudged is not None:
        return unjudged
    prompt = order.prompt
    if spec.answers in ("best", "violating"):
        chosen = ranked(drafts)[0 if spec.answers == "best" else -1]
        text = chosen.text
        if spec.answers == "violating" and all(chosen.followed) and not (text := broken_off(prompt, chosen.text)):
            return f"every one of {len(drafts)} drafts follows all constraints, and so does its beginning"
        followed = tuple(one is True for one in verify(prompt.constraints, text).followed)
        identity = (prompt.id, prompt.split, order.take)
        return Demonstration(*identity, text, chosen.text, (), followed, count_tokens(text), chosen.truncated)
    for draft in ranked(drafts):
        rng = stream(spec.seed, "mend", order.take, prompt.id, draft.index)
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


def exchanged(made: Sequence[Demonstration], prompts: Mapping[str, Prompt]) -> list[Demonstration]:
    """Every demonstration given to the next prompt of its split and take, with the verdict that it has there."""
    together: dict[tuple[str, int], list[Demonstration]] = defaultdict(list)
    for one in made:
        together[one.split, one.take].append(one)
    given = {}
    for group in together.values():
        for taker, giver in zip(group, [*group[1:], group[0]], strict=True):
            verdict = verify(prompts[taker.prompt_id].constraints, giver.text)
            followed = tuple(one is True for one in verdict.followed)
            given[taker.prompt_id, taker.take] = replace(giver, prompt_id=taker.prompt_id, followed=followed)
    return [given[one.prompt_id, one.take] for one in made]
