"""What AutoIF asks the teacher, in our own words: each function returns the text of one user message."""

from __future__ import annotations

import json
from collections.abc import Sequence


def augment(examples: Sequence[str], *, count: int) -> str:
    """Ask for new instructions like the examples."""
    listed = "\n".join(f"- {example}" for example in examples)
    return (
        f"Write {count} new instructions about the form of an answer to any question whatever. Each must be one that a "
        f"short Python function can check from the text of the answer alone: counts, positions, characters, words, "
        f"lines, punctuation, layout. None may be about style, tone, meaning, facts or translation.\n"
        f"Instructions of the kind that is wanted:\n{listed}\n"
        f"Give one instruction a line, each line beginning with '- ', and nothing else."
    )


def function(instruction: str) -> str:
    """Ask for a verification function and three test cases, as JSON."""
    shape = json.dumps({"func": "def evaluate(response):\\n    ...", "cases": [{"input": "text", "output": True}]})
    return (
        f"Instruction to a writer: {instruction}\n\n"
        f"Write a Python function `evaluate(response)` that takes the whole text of an answer as a string and returns "
        f"True where the answer follows the instruction and False where it does not. Use the standard library alone, "
        f"no files and no network. Then give three test cases, at least one that follows and one that does not.\n"
        f"Reply with one JSON object in a ```json block and nothing else, with line breaks in strings written as \\n:\n"
        f"{shape}"
    )


def back_translate(source: str) -> str:
    """Ask which instruction a verification function checks."""
    return (
        f"This function checks whether the text of an answer follows an instruction:\n\n```python\n{source}\n```\n\n"
        f"Reply with that instruction alone, as one sentence that tells a writer what to do, and nothing else."
    )


def compare(instruction: str, back_translation: str) -> str:
    """Ask how two instructions are related."""
    return (
        f"A: {instruction}\nB: {back_translation}\n\n"
        f"Could a text that follows A break B, or the other way round, because they ask for different things? Reply "
        f"with one word: entailment (whoever follows A follows B), contradiction (nobody can follow both, or they are "
        f"about different things), or neutral."
    )


def queries(topic: str, *, count: int) -> str:
    """Ask for what users might ask about a topic."""
    return (
        f"Write {count} different messages that a user might send to an assistant about {topic}: questions, tasks, "
        f"requests for advice. Each is one or two sentences, between 20 and 300 characters, and says nothing of the "
        f"form of the answer.\nGive one message a line, each line beginning with '- ', and nothing else."
    )


def prompt(query: str, instruction: str) -> str:
    """The user message of the training prompt."""
    return f"{query}\n{instruction}"


def score(query: str, instruction: str, answer: str) -> str:
    """Ask how well an answer serves the query, whatever the instruction makes of it."""
    return (
        f"A user asked:\n{query}\n\nThe answer had to follow this instruction about its form:\n{instruction}\n\n"
        f"The answer:\n{answer}\n\n"
        f"Does it answer the user as well as the instruction allows? Think about it in a few sentences, then give a "
        f"whole number from 0 (nothing to do with what was asked) to 10 (helpful and to the point) in a last line of "
        f"the form `Score: N`."
    )
