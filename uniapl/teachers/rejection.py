"""Rejection sampling: a chat model answers a prompt, up to k times, until one answer passes all verifiers.

Only whole answers count: not those cut at the cap, by the teacher's tokens or by the student's, and no thinking text.
All prompts that are still open are asked together, so an endpoint is kept busy.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from uniapl.answer_cache import Answer
from uniapl.config import EndpointSpec, VLLMSpec
from uniapl.constraints import functions, verify_all
from uniapl.endpoint import Endpoint, chat_request
from uniapl.records import Demonstration
from uniapl.seeding import stream_seed
from uniapl.teachers.drafts import Draft, Order


def without_thinking(text: str) -> str:
    """An answer without its thinking: whole `<think>` blocks, one that the template had opened, one never closed."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    return text.rpartition("</think>")[2].partition("<think>")[0].strip()


def judged_answers(
    some: Sequence[Order], answers: Sequence[Answer], *, index: int, max_tokens: int, count_tokens: Callable[[str], int]
) -> list[Draft]:
    """Answers to orders with their verdicts. `truncated` where one is longer than the cap or did not end by itself."""
    texts = [without_thinking(answer.text) for answer in answers]
    verdicts = verify_all([(order.prompt.constraints, text) for order, text in zip(some, texts, strict=True)])
    drafts = []
    for order, answer, text, verdict in zip(some, answers, texts, verdicts, strict=True):
        num_tokens = count_tokens(text)
        cut = answer.finish_reason != "stop" or num_tokens > max_tokens
        identity = (order.prompt.id, order.prompt.split, order.take, index)
        drafts.append(Draft(*identity, text, num_tokens, cut, verdict.status, verdict.followed))
    return drafts


def sample_until_passed(
    todo: Sequence[Order], spec: EndpointSpec | VLLMSpec, *, endpoint: Endpoint, model: str, max_tokens: int,
    count_tokens: Callable[[str], int],
) -> tuple[list[Demonstration | str], list[Draft]]:  # fmt: skip
    """A demonstration for each order, or the reason why there is none; and all answers with their verdicts.

    `model` is the teacher's name at the endpoint. An order that cannot be judged is not asked for again.
    """

    def body_of(order: Order, index: int) -> dict[str, Any]:
        return chat_request(
            order.prompt.text, model=model, max_tokens=max_tokens, temperature=spec.temperature, top_p=spec.top_p,
            extra_body=spec.extra_body, seed=stream_seed(spec.seed, "answer", order.take, order.prompt.id, index),
        )  # fmt: skip

    made: list[Demonstration | str | None] = [None] * len(todo)
    answers: list[list[Draft]] = [[] for _ in todo]
    for index in range(spec.num_samples):
        still_open = [place for place, one in enumerate(made) if one is None]
        if not still_open:
            break
        received = endpoint.ask([body_of(todo[place], index) for place in still_open])
        some = [todo[place] for place in still_open]
        drafts = judged_answers(some, received, index=index, max_tokens=max_tokens, count_tokens=count_tokens)
        for place, order, answer, draft in zip(still_open, some, received, drafts, strict=True):
            answers[place].append(draft)
            if draft.status != "ok" and functions.KIND not in draft.status:  # those may judge another answer
                made[place] = draft.status
            elif all(draft.followed) and not draft.truncated:
                made[place] = Demonstration(
                    prompt_id=order.prompt.id, split=order.prompt.split, take=order.take, text=draft.text,
                    original=answer.text, edits=(), followed=tuple(one is True for one in draft.followed),
                    num_tokens=draft.num_tokens,
                )  # fmt: skip
        passed = sum(isinstance(one, Demonstration) for one in made)
        print(f"sample {index + 1} of at most {spec.num_samples}: {passed} of {len(todo)} orders passed", flush=True)
    done = [one or why_none(drafts) for one, drafts in zip(made, answers, strict=True)]
    return done, [draft for drafts in answers for draft in drafts]


def why_none(drafts: Sequence[Draft]) -> str:
    """Why none of an order's answers became its demonstration, in one line."""
    counts = Counter(
        "empty"
        if not draft.text
        else "cut or too long"
        if draft.truncated
        else "not judged"
        if draft.status != "ok"
        else "against a constraint"
        for draft in drafts
    )
    return f"no answer of {len(drafts)} passed: " + ", ".join(f"{n} {why}" for why, n in sorted(counts.items()))
