"""The prompt generator: a topic, a task, and 1 to 3 constraints that go together.

Prompt i of a split is a function of (seed, split, i) and of the prompts before it (a text that already came is drawn
again), so a longer split begins with the shorter one. Each split cycles through its constraint kinds.
"""

from __future__ import annotations

import random
from dataclasses import replace

from uniapl.config import DataSpec
from uniapl.constraints.drawing import draw_constraints, kinds_of
from uniapl.constraints.kinds import KINDS, LENGTH, REPEAT, SHAPE
from uniapl.records import Constraint, Prompt
from uniapl.seeding import stream
from uniapl.topics import TOPICS

# Tasks that leave shape and length open, and yet get short answers.
FREE_FORMS = {
    "describe": "Describe {topic} in a few words.",
    "praise": "Praise {topic} in a few words.",
    "remark": "Make a brief remark about {topic}.",
    "sum_up": "Sum up {topic} in a few words.",
    "advertise": "Advertise {topic} in a few words.",
    "recommend": "Recommend {topic} in a few words.",
    "complain": "Complain about {topic} in a few words.",
    "announce": "Announce {topic} in a few words.",
    "opinion": "Give your opinion of {topic} in a few words.",
}
# Tasks that fix how long the answer is.
FIXED_FORMS = {
    "sentence": "Write one short sentence about {topic}.",
    "slogan": "Invent a slogan about {topic}.",
    "headline": "Write a newspaper headline about {topic}.",
    "question": "Ask one short question about {topic}.",
    "names": "Suggest a name for a club about {topic}.",
    "caption": "Write a one-line photo caption about {topic}.",
    "line": "Write a one-line message to a friend about {topic}.",
    "reason": "Say in one short sentence why people like {topic}.",
    "one_fact": "Tell me one fact about {topic} in one short sentence.",
    "in_one": "Sum up {topic} in one short sentence.",
    "tip": "Give a beginner one tip about {topic} in one short sentence.",
    "card": "Write a one-line greeting card about {topic}.",
}
# Tasks whose answers may be long.
OPEN_FORMS = {
    "explain": "Explain {topic} to somebody who is new to it.",
    "essay": "Write a short essay about {topic}.",
    "story": "Tell a story about {topic}.",
    "letter": "Write a letter to a friend about {topic}.",
    "article": "Write an article for a magazine about {topic}.",
    "advice": "Give advice to somebody who is interested in {topic}.",
    "dialogue": "Write a conversation between two people about {topic}.",
    "review": "Write a review about {topic}.",
    "speech": "Write a speech about {topic} for a school.",
    "blog": "Write a blog post about {topic}.",
    "poem": "Write a poem about {topic}.",
    "questions": "Which questions do people ask about {topic}, and what are the answers?",
    "history": "What has changed about {topic} in the last hundred years?",
    "pro_and_con": "What speaks for {topic}, and what against it?",
    "plan": "Make a plan for a weekend about {topic}.",
    "summary": "Summarize what one should know about {topic}.",
}
MOST_REDRAWS = 200


def _open_in_length(constraints: tuple[Constraint, ...]) -> bool:
    """True where the constraints prescribe no shape and no length, so that a task may."""
    kinds = [(KINDS[one.kind], one.kwargs) for one in constraints]
    return all(not kind.groups & {SHAPE, LENGTH} and kind.least_words(kwargs) <= 12 for kind, kwargs in kinds)


def generate_prompt(rng: random.Random, spec: DataSpec, *, identity: str, split: str, group: str, first: str) -> Prompt:
    """One prompt whose first constraint is of kind `first` wherever it fits the cap on new tokens."""
    topic, words = rng.choice(list(TOPICS[split].items()))
    constraints = draw_constraints(rng, spec, group, words=words, first=first)
    forms = OPEN_FORMS if spec.kinds == "ifeval" else FIXED_FORMS if _open_in_length(constraints) else FREE_FORMS
    form = rng.choice(list(forms))
    # What asks to repeat the request comes last, and the request is all that stands before it.
    constraints = tuple(sorted(constraints, key=lambda one: one.kind == REPEAT))
    texts = [forms[form].format(topic=topic), *(one.text for one in constraints)]
    if constraints[-1].kind == REPEAT:
        constraints = (*constraints[:-1], replace(constraints[-1], kwargs={"prompt_to_repeat": " ".join(texts[:-1])}))
    text = " ".join(texts)
    return Prompt(identity, split, text, constraints, topic=topic, form=form, group=group)


# DEVIATION: prompts: at laptop scale generated ones alone, without AutoIF and IF-RLVR; IFBench is only evaluated.
def generate_split(spec: DataSpec, split: str, count: int) -> list[Prompt]:
    """Draw `count` prompts with different texts; every other held-out one has only kinds unseen in training.

    Raise ValueError where so many different prompts cannot be had.
    """
    kinds = {group: kinds_of(group, spec.kinds) for group in ("seen", "unseen")}
    prompts: list[Prompt] = []
    texts: set[str] = set()
    for index in range(count):
        group, turn = ("unseen" if index % 2 else "seen", index // 2) if split == "heldout" else ("seen", index)
        first = kinds[group][turn % len(kinds[group])]
        rng = stream("data", spec.seed, split, index)
        for _ in range(MOST_REDRAWS):
            prompt = generate_prompt(rng, spec, identity=f"{split}-{index:05d}", split=split, group=group, first=first)
            if prompt.text not in texts:
                break
        else:
            raise ValueError(f"only {index} different {split} prompts could be drawn of {count}; ask for fewer")
        texts.add(prompt.text)
        prompts.append(prompt)
    return prompts
