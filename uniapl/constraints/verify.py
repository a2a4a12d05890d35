"""Verdicts on answers: IFEval's 25 and IFBench's 58 constraint kinds through the package if-verifiable, and functions
that a model wrote, in the sandbox (`functions`).

A verdict is deterministic, or it is a recorded status and no verdict. What deviates from the package, and why:
a letter frequency of a symbol counts the symbol (the package draws a random letter in its place); parameters of 0 are
kept (lm-eval drops falsy ones, the package a span that starts at word 0); missing parameters are a status (the package
draws random ones); langdetect is seeded; nltk reads the punkt_tab files that llama-index-core ships and never
downloads; a missing POS tagger is a status. An answer of white space alone fails, as in lm-eval. Nothing heavy is
imported before the first verdict.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uniapl.constraints import functions
from uniapl.records import Constraint
from uniapl.sandbox import Judgement

OK = "ok"


@dataclass(frozen=True)
class Verdict:
    """Whether each constraint is followed (None: not judged). `status` is "ok" or says why one was not judged."""

    status: str
    followed: tuple[bool | None, ...]

    @property
    def passed(self) -> bool | None:
        """True where all constraints hold; None where one was not judged, whatever the others say."""
        return None if any(one is None for one in self.followed) else all(self.followed)


class Unavailable(Exception):
    """A constraint that cannot be judged here; the message becomes the status."""


def _shipped_nltk_data() -> Path | None:
    """Folder with punkt_tab inside the package llama-index-core, found without importing it."""
    try:
        spec = find_spec("llama_index.core")
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "_static" / "nltk_cache"
    return folder if (folder / "tokenizers" / "punkt_tab").is_dir() else None


@cache
def _checkers() -> dict[str, Any]:
    """Checker class of every kind. Imports if-verifiable with downloads off, seeded and quiet."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import nltk

    folder = _shipped_nltk_data()
    if folder is not None and str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
    download, nltk.download = nltk.download, lambda *arguments, **options: False
    try:
        from if_verifiable.ifbench import instructions_registry as ifbench
        from if_verifiable.ifeval import instructions as ifeval_instructions
        from if_verifiable.ifeval import instructions_registry as ifeval
    finally:
        nltk.download = download
    import langdetect

    langdetect.DetectorFactory.seed = 0
    quiet = logging.getLogger("uniapl.constraints.quiet")  # the package logs every text without a language as an error
    quiet.setLevel(logging.CRITICAL + 1)  # `disabled` would not last: any later dictConfig (vLLM's) resets it
    ifeval_instructions.logging = quiet
    return {**ifeval.INSTRUCTION_DICT, **ifbench.INSTRUCTION_DICT}


def known_kinds() -> frozenset[str]:
    """Names of all kinds that have a verifier."""
    return frozenset(_checkers())


@lru_cache(maxsize=65536)
def _checker(kind: str, kwargs_json: str) -> Any:
    """A checker with its parameters set. Raise Unavailable where the parameters do not decide the verdict."""
    checker_class = _checkers().get(kind)
    if checker_class is None:
        raise Unavailable(f"unknown constraint kind {kind!r}")
    kwargs = {key: value for key, value in json.loads(kwargs_json).items() if value is not None}
    checker = checker_class(kind)
    put_back: dict[str, Any] = {}  # attributes that the package would have overwritten with random ones
    if kind == "keywords:letter_frequency":
        letter = kwargs.get("letter")
        if not isinstance(letter, str) or len(letter) != 1:
            raise Unavailable(f"letter must be one character, not {letter!r}")
        if not "a" <= letter.lower() <= "z":
            put_back["_letter"], kwargs["letter"] = letter.lower(), "a"
    if kind == "repeat:repeat_span" and kwargs.get("n_start") == 0:
        put_back["_n_start"], kwargs["n_start"] = 0, 1
    before = random.getstate()
    try:
        checker.build_description(**kwargs)
    finally:
        drew = random.getstate() != before
        random.setstate(before)
    if drew:
        raise Unavailable(f"{kind}: parameters {sorted(kwargs)} are incomplete, the verifier would draw random ones")
    for name, value in put_back.items():
        setattr(checker, name, value)
    return checker


def undecided(constraint: Constraint) -> str | None:
    """Why a constraint could judge no answer at all: no verifier, or parameters that do not decide; else None."""
    try:
        _checker(constraint.kind, json.dumps(constraint.kwargs, sort_keys=True))
    except Unavailable as reason:
        return str(reason)
    except Exception as error:  # a verifier that cannot be set up is one more reason
        return f"{constraint.kind}: {type(error).__name__}: {error}"
    return None


def _judge(kind: str, kwargs_json: str, texts: Sequence[str]) -> bool:
    """True where any of the texts follows. Where none does and the verifier failed on one: Unavailable."""
    failure = None
    for text in texts:
        try:
            if _checker(kind, kwargs_json).check_following(text):
                return True
        except Unavailable:
            raise
        except Exception as error:  # a verifier's defect is a status, never a wrong answer
            failure = failure or _reason(kind, error)
    if failure:
        raise Unavailable(failure)
    return False


def _reason(kind: str, error: Exception) -> str:
    """What a verifier lacks or does wrong."""
    if isinstance(error, LookupError) and "tagger" in str(error):
        return "POS tagger"
    if isinstance(error, LookupError) and "punkt" in str(error):
        return "punkt_tab of nltk; install llama-index-core, which ships it"
    return f"{kind}: {type(error).__name__}: {error}"


def loose_variants(response: str) -> list[str]:
    """IFEval's eight: the answer as it is, without its first, last, or both lines, each also without asterisks."""
    lines = response.split("\n")
    cut = [
        response,
        "\n".join(lines[1:]).strip(),
        "\n".join(lines[:-1]).strip(),
        "\n".join(lines[1:-1]).strip(),
    ]
    return [*cut, *(text.replace("*", "") for text in cut)]


def verify(constraints: Sequence[Constraint], response: str, *, strict: bool = True) -> Verdict:
    """Judge an answer. Loose (strict=False): a constraint holds where any of IFEval's eight variants follows it."""
    return verify_all([(constraints, response)], strict=strict)[0]


def verify_all(answers: Sequence[tuple[Sequence[Constraint], str]], *, strict: bool = True) -> list[Verdict]:
    """Judge many answers, each by its constraints. Functions that a model wrote are called together, in the sandbox."""
    texts = [_texts(response, strict=strict) for _, response in answers]
    calls = [
        (source, text)
        for (constraints, _), variants in zip(answers, texts, strict=True)
        for constraint in constraints
        if constraint.kind == functions.KIND
        for text in variants
        for source in constraint.kwargs["functions"]
    ]
    judgements = iter(functions.judge_calls(calls))
    return [
        _verdict(constraints, variants, judgements) for (constraints, _), variants in zip(answers, texts, strict=True)
    ]


def _texts(response: str, *, strict: bool) -> list[str]:
    """The texts of which one has to follow; none for an empty answer, which follows nothing."""
    variants = [response] if strict else dict.fromkeys(loose_variants(response))
    return [text for text in variants if text.strip()] if response.strip() else []


def _verdict(constraints: Sequence[Constraint], texts: Sequence[str], judgements: Iterator[Judgement]) -> Verdict:
    """An answer's verdict; `judgements` are those of the functions that a model wrote, in the order of their calls."""
    status, followed = OK, list[bool | None]()
    for constraint in constraints if texts else ():
        try:
            if constraint.kind == functions.KIND:
                followed.append(_any_agreed(len(constraint.kwargs["functions"]), texts, judgements))
            else:
                kwargs_json = json.dumps(constraint.kwargs, sort_keys=True)
                followed.append(_judge(constraint.kind, kwargs_json, texts))
        except Unavailable as reason:
            followed.append(None)
            if status == OK:
                status = f"unavailable: {' '.join(str(reason).split())[:200]}"
    return Verdict(status, tuple(followed) if texts else (False,) * len(constraints))


def _any_agreed(count: int, texts: Sequence[str], judgements: Iterator[Judgement]) -> bool:
    """True where `count` functions agree that one of the texts follows. Where none does and one was not judged:
    Unavailable.
    """
    found = [functions.agreed([next(judgements) for _ in range(count)]) for _ in texts]
    if True not in found and (reasons := [one for one in found if isinstance(one, str)]):
        raise Unavailable(reasons[0])
    return True in found
