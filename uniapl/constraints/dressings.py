"""The outer form that constraints ask for, put around plain sentences: shapes, titles, endings, case, wrapping.

A text is a list of units: a sentence and what stands before it (white space, a list marker). `dress` puts them together
and adds only what is missing, in a fixed order: shape, emphasis, title, ending, case, wrapping. Where several wordings
would do, the first that breaks none of the other constraints is taken.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from uniapl.constraints.verify import verify
from uniapl.records import Constraint

Kwargs = dict[str, Any]

MARKER = re.compile(r"\s*(?:(?:[-*•#]+|\d+[.)])[ \t]+)?")
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*”]*(?=\s)")
STOCK = (
    "It is worth a try.", "Take it one step at a time.", "The rest will follow.", "Each day brings something new.",
    "A little care goes a long way.", "Small things matter most.", "It helps to start early.",
    "Enjoy it while it lasts.",
    "Everyone can join in.", "Ask around and see what others think.", "There is always more to learn.",
    "The best part is still to come.", "Keep it simple and have fun.", "It works best with a calm mind.",
    "People often find this useful.", "This is a good place to start.", "Little by little it gets better.",
    "Make time for it when possible.", "It is all right to go slow.", "Other people like it too.",
)  # fmt: skip
SHORT_STOCK = (
    "It is good.",
    "Try it.",
    "It helps.",
    "All is well.",
    "Go on.",
    "This is it.",
    "So it is.",
    "Here it is.",
)
TITLES = ("A Few Words", "In Short", "The Idea", "Notes", "Read This", "All of It", "Hi")
POSTSCRIPTS = ("Try it soon.", "It is worth it.", "There is more to come.", "Have fun with it.", "So it is.", "Hi.")


@dataclass(frozen=True)
class Unit:
    """One sentence and the white space and list marker before it."""

    lead: str
    text: str


@dataclass
class Body:
    """Plain content of a draft. `postscript` is the draft's own one, taken off so that edits come before it."""

    units: list[Unit]
    topic: str = ""
    postscript: str = ""
    dressings: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        return [cleaned for unit in self.units if (cleaned := unit.text.strip().strip("#").strip())]

    @property
    def plain(self) -> str:
        return "".join(unit.lead + unit.text for unit in self.units).strip()


def split_units(text: str) -> list[Unit]:
    """Cut a text into sentences; joining leads and texts again gives the text."""
    units = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        body, marker = line.rstrip(), MARKER.match(line)
        start = marker.end() if marker and marker.end() < len(body) else 0
        lead = line[:start]
        for end in [*(match.end() for match in SENTENCE_END.finditer(body, start)), len(body)]:
            blank = len(body[start:end]) - len(body[start:end].lstrip())
            units.append(Unit(lead + body[start : start + blank], body[start + blank : end]))
            start, lead = end, ""
        units.append(Unit(line[start:], ""))
    merged: list[Unit] = []
    lead = ""
    for unit in units:
        if unit.text.strip():
            merged.append(Unit(lead + unit.lead, unit.text))
            lead = ""
        else:
            lead += unit.lead + unit.text
    return merged


def finished(sentence: str) -> str:
    """A sentence with a full stop where it has no end."""
    sentence = sentence.strip()
    return sentence if re.search(r"[.!?…>:][\"')\]*”]*$", sentence) else sentence.rstrip(" ,;-") + "."


def followed(constraint: Constraint, text: str) -> bool:
    """True where one constraint holds."""
    return verify([constraint], text).passed is True


def count_followed(constraints: Sequence[Constraint], text: str) -> int:
    """How many constraints hold."""
    return sum(one is True for one in verify(constraints, text).followed)


def capital(text: str) -> str:
    """Text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def stock(rng: random.Random, topic: str) -> list[str]:
    """Generic sentences in random order, those about the topic first."""
    about = [f"There is more to say about {topic}.", f"That is what many people like about {topic}."] if topic else []
    rng.shuffle(about)
    return [*about, *rng.sample(STOCK, len(STOCK))]


# ---- shapes: from sentences to a text of the wanted outer form


def _parts(sentences: list[str], count: int, rng: random.Random, topic: str) -> list[str]:
    """Sentences in `count` runs of about equal length, topped up with generic ones."""
    spare = iter(s for s in stock(rng, topic) if s not in sentences)
    sentences = list(sentences)
    while len(sentences) < count:
        sentences.append(next(spare))
    bounds = [round(i * len(sentences) / count) for i in range(count + 1)]
    return [" ".join(finished(s) for s in sentences[a:b]) for a, b in pairwise(bounds)]


def _bullets(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    return "\n".join(f"* {part}" for part in _parts(sentences, kwargs["num_bullets"], rng, topic))


def _separated_list(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    count = max(2, min(4, len(sentences)))
    return "\n".join(f"{kwargs['sep']} {part}" for part in _parts(sentences, count, rng, topic))


def _paragraphs(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    return "\n\n***\n\n".join(_parts(sentences, kwargs["num_paragraphs"], rng, topic))


def _nth_paragraph(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    parts = _parts(sentences, kwargs["num_paragraphs"], rng, topic)
    chosen, word = kwargs["nth_paragraph"] - 1, kwargs["first_word"]
    if not re.match(rf"[\"']*{re.escape(word)}(?![^\s.,?!'\"])", parts[chosen], re.IGNORECASE):
        opening = rng.choice(("That is where it starts.", "That is one part of it.", "That comes to mind first."))
        parts[chosen] = f"{capital(word)}? {opening} {parts[chosen]}"
    return "\n\n".join(parts)


def _sections(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    parts = _parts(sentences, kwargs["num_sections"], rng, topic)
    return "\n\n".join(f"{kwargs['section_spliter']} {i}\n{part}" for i, part in enumerate(parts, start=1))


def _two_responses(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    return "\n\n******\n\n".join(_parts(sentences, 2, rng, topic))


def _thesis(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    thesis, *rest = _parts(sentences, max(2, len(sentences)), rng, topic)
    return f"<i>{thesis}</i> {' '.join(rest)}"


def _template(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    sentences = [re.sub(r"^(My Answer|My Conclusion|Future Outlook):\s*", "", s) for s in sentences]
    answer, conclusion, outlook = _parts([s for s in sentences if s], 3, rng, topic)
    return f"My Answer: {answer}\nMy Conclusion: {conclusion}\nFuture Outlook: {outlook}"


def _json_object(sentences: list[str], kwargs: Kwargs, rng: random.Random, topic: str) -> str:
    return json.dumps({"answer": " ".join(finished(s) for s in sentences)}, ensure_ascii=False)


Shape = Callable[[list[str], Kwargs, random.Random, str], str]
SHAPES: dict[str, Shape] = {
    "detectable_format:number_bullet_lists": _bullets,
    "format:list": _separated_list,
    "length_constraints:number_paragraphs": _paragraphs,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph,
    "detectable_format:multiple_sections": _sections,
    "combination:two_responses": _two_responses,
    "format:thesis": _thesis,
    "format:output_template": _template,
    "detectable_format:json_format": _json_object,
}


# ---- what is put on or around a text: each yields wordings, the most natural first


def _highlight(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    words = list(re.finditer(r"(?<![\w*<\[])[A-Za-z]{5,}(?![\w*>\]])", text))
    for offset in range(max(1, len(words) - kwargs["num_highlights"])):
        chosen = words[offset :: max(1, (len(words) - offset) // kwargs["num_highlights"])][: kwargs["num_highlights"]]
        marked = text
        for match in reversed(chosen):
            if text[: match.start()].strip():  # a star at the very start would look like a bullet
                marked = f"{marked[: match.start()]}*{match.group()}*{marked[match.end() :]}"
        yield marked
    yield f"{text} *Try it* and *have fun*."


def _title(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    topic = [body.topic.title()] if body.topic else []
    opening = " ".join(re.findall(r"[\w'-]+", text)[:4]).title()
    for title in (*topic, opening, *TITLES):
        yield f"<<{title}>>\n{text}"


def _postscript(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    marker = kwargs["postscript_marker"]
    own = [re.sub(r"^\W*(p\.?\s?)+s\.?:?\s*", "", body.postscript, flags=re.IGNORECASE)] if body.postscript else []
    for words in (*own, *POSTSCRIPTS):
        if words:
            yield f"{text}\n\n{marker} {words}"


def _ending(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    yield f"{finished(text)} {kwargs['end_phrase']}"
    yield f"{text.rstrip('.!? ')} - {kwargs['end_phrase']}"


def _emphasis(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    """Words in all capital letters, more or fewer."""
    frequency = kwargs["capital_frequency"]
    if kwargs["capital_relation"] == "at least":
        words = list(re.finditer(r"(?<![\w'<\[])[A-Za-z]{4,}(?![\w'>\]])", text))
        spread = [words[:: max(1, len(words) // frequency)][:frequency]]
        for chosen in [*spread, *(words[offset : offset + frequency] for offset in range(len(words)))]:
            marked = text
            for match in reversed(chosen):
                marked = marked[: match.start()] + match.group().upper() + marked[match.end() :]
            yield marked
    else:
        calm = re.sub(r"\bI'm\b", "we're", text)
        calm = re.sub(r"\bI am\b", "we are", calm)
        calm = re.sub(r"\bI was\b", "we were", calm)
        calm = re.sub(r"\bI\b", "we", calm)
        calm = re.sub(r"(?<![\w'])A(?=\s)", "One", calm)
        calm = re.sub(r"\b[A-Z]{2,}\b", lambda match: match.group().capitalize(), calm)
        yield re.sub(r"(^|[.!?]\s+|\n)we\b", lambda match: match.group(1) + "We", calm)


def _lowercase(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    yield text.lower()


def _uppercase(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    yield text.upper()


def _title_case(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    """Every word with a capital; contractions with n't are written out, since the verifier's tokens cut them."""
    spelled = re.sub(r"\bcan(['’]t|not)\b", "can not", text, flags=re.IGNORECASE)
    spelled = re.sub(r"\bwon['’]t\b", "will not", spelled, flags=re.IGNORECASE)
    spelled = re.sub(r"n['’]t\b", " not", spelled, flags=re.IGNORECASE)
    yield re.sub(r"(?<![A-Za-z'’])[a-z]", lambda match: match.group().upper(), spelled)


def _quotation(text: str, kwargs: Kwargs, body: Body) -> Iterator[str]:
    yield f'"{text.strip()}"'


DRESSINGS: dict[str, Callable[[str, Kwargs, Body], Iterator[str]]] = {
    "detectable_format:number_highlighted_sections": _highlight,
    "detectable_format:title": _title,
    "detectable_content:postscript": _postscript,
    "startend:end_checker": _ending,
    "change_case:capital_word_frequency": _emphasis,
    "change_case:english_lowercase": _lowercase,
    "change_case:english_capital": _uppercase,
    "format:title_case": _title_case,
    "startend:quotation": _quotation,
}


def undress(constraints: Sequence[Constraint], text: str, *, topic: str) -> Body:
    """Take off what `dress` puts back: an outer quotation, a prescribed ending, a postscript, JSON around sentences."""
    kinds = {constraint.kind: constraint.kwargs for constraint in constraints}
    text, postscript = text.strip(), ""
    if "startend:quotation" in kinds:
        text = text.strip('"').strip()
    if "startend:end_checker" in kinds:
        phrase = kinds["startend:end_checker"]["end_phrase"]
        while text.lower().endswith(phrase.lower()):
            text = text[: -len(phrase)].rstrip()
    if "detectable_content:postscript" in kinds:
        found = re.search(r"(^|\s)(P\.\s?)+S\.?[\s:].*$", text, re.IGNORECASE | re.DOTALL)
        if found and found.start() > 0:
            text, postscript = text[: found.start()].rstrip(), found.group().strip()
    if text.startswith(("{", "```")):
        strings = re.findall(r'"((?:[^"\\]|\\.)*)"\s*(?!\s*:)', text)
        prose = " ".join(finished(s) for s in strings if len(s.split()) > 2)
        text = prose or re.sub(r'[`{}\[\]"]|json', " ", text)
        text = re.sub(r"\s+", " ", text.replace("\\n", " ").replace('\\"', "'")).strip()
    return Body(split_units(text), topic, postscript)


def preferred(constraints: Sequence[Constraint], options: Iterable[str]) -> str:
    """The option that follows most constraints, the earliest of several."""
    best, most = "", -1
    for option in options:
        count = count_followed(constraints, option)
        if count > most:
            best, most = option, count
        if count == len(constraints):
            break
    return best


def dress(constraints: Sequence[Constraint], body: Body, *, seed: int) -> str:
    """The body in the form that the constraints ask for; `body.dressings` names what had to be put on."""
    text, body.dressings, rng = body.plain, [], random.Random(seed)
    for constraint in constraints:
        shape = SHAPES.get(constraint.kind)
        if shape is not None and body.sentences and not followed(constraint, text):
            text = shape(body.sentences, constraint.kwargs, rng, body.topic)
            body.dressings.append(constraint.kind)
    for kind, options in DRESSINGS.items():
        for constraint in constraints:
            if constraint.kind == kind and not followed(constraint, text):
                text = preferred(constraints, options(text, constraint.kwargs, body))
                body.dressings.append(kind)
    return text
