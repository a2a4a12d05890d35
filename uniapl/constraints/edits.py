"""Edits that make a draft follow its constraints and keep as much of it as possible: the editor's second half.

A draft is taken apart into sentences. Content is mended sentence by sentence in a fixed order (shortening first, then
removals, then insertions), and `dressings.dress` puts the outer form on. Every proposed edit is judged by the verifiers
together with all other constraints and the cap on tokens, and the first of the best is kept, so that one edit does not
undo another. Where that gets stuck, it is tried again from the draft's first sentences alone.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from uniapl.constraints.dressings import SHORT_STOCK, Body, Kwargs, Unit, capital, dress, finished, stock, undress
from uniapl.constraints.verify import verify
from uniapl.records import Constraint

MAX_ROUNDS = 14
SHORTEN, CONDENSE = "shorten", "condense"
CONJUNCTION_SENTENCES = (
    "It is simple and fun.", "It is small but useful.", "Try it now or later.", "It is simple but fun and useful.",
    "Try it now or later and see.", "It is good for you and for others but takes time.", "Use it or not but try.",
)  # fmt: skip
PRONOUN_SENTENCES = (
    "You will like it.", "They will thank you for it.", "You and I will like it and so will they.", "It is up to you.",
)  # fmt: skip
RUN_ON = (
    "we can go out and see how good it is to walk by the old house at noon when all birds sing for us in one more "
    "day of sun then you sit down with a cup near some tree while they talk about life as if time had no end"
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True)
class Mended:
    """A text that follows every constraint, and the edits that led there (none: the draft was right)."""

    text: str
    edits: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """Units of a body, the dressed text, and how much of what is asked it meets."""

    units: tuple[Unit, ...]
    text: str
    dressings: tuple[str, ...]
    followed: tuple[bool, ...]
    fits: bool

    @property
    def score(self) -> int:
        return sum(self.followed) + self.fits

    @property
    def done(self) -> bool:
        return self.fits and all(self.followed)


Units = tuple[Unit, ...]
Proposals = Iterator[Units]


def _insert(units: Units, sentence: str, *, at: int | None = None) -> Units:
    """Units with one more sentence, at the end or before unit `at`."""
    if at is not None and at < len(units):
        first = units[at]
        return (*units[:at], Unit(first.lead, sentence), replace(first, lead=" "), *units[at + 1 :])
    if not units:
        return (Unit("", sentence),)
    return (*units[:-1], replace(units[-1], text=finished(units[-1].text)), Unit(" ", sentence))


def _without(units: Units, index: int) -> Units:
    return (*units[:index], *units[index + 1 :])


def _append_more(units: Units, sentences: Sequence[str]) -> Proposals:
    """With one more sentence, two more, and so on; those already there are left out."""
    present = {unit.text for unit in units}
    for sentence in sentences:
        if sentence not in present:
            units = _insert(units, sentence)
            yield units


def _append_any(units: Units, sentences: Sequence[str]) -> Proposals:
    """With one of several sentences, then with ever more of them."""
    for sentence in sentences:
        yield _insert(units, sentence)
    yield from _append_more(units, sentences)


def _drop_where(units: Units, unwanted: Callable[[str], bool]) -> Proposals:
    """Without all sentences that are unwanted, where something is left."""
    kept = tuple(unit for unit in units if not unwanted(unit.text))
    if kept:
        yield kept


def _rewrite(units: Units, change: Callable[[str], str]) -> Units:
    return tuple(replace(unit, text=change(unit.text)) for unit in units)


DANGLING = re.compile(r"(\s+(and|or|but|of|to|the|a|an|in|for|with|that|is|as|on|by))+$")


def _shorter(units: Units) -> Proposals:
    """Without one sentence (the last first), without ever more of the last, and with one cut to a few words."""
    for index in range(len(units) - 1, 0, -1):
        yield _without(units, index)
    for count in range(len(units) - 2, 0, -1):
        yield units[:count]
    for index in range(len(units) - 1, -1, -1):
        words = units[index].text.split()
        for count in sorted({len(words) * part // 8 for part in range(7, 1, -1)}, reverse=True):
            if count >= 3:
                cut = finished(DANGLING.sub("", " ".join(words[:count])).rstrip(",;:"))
                yield (*units[:index], replace(units[index], text=cut), *units[index + 1 :])
    if len(units) > 1:
        yield units[1:]


# ---- one function a kind: proposals for units whose text does not follow it


def _keyword_sentences(words: Sequence[str], topic: str, rng: random.Random) -> list[str]:
    """Short sentences that mention nouns, those that mention the topic too first."""
    named = ", ".join(f"the {word}" for word in words[:-1]) + " and " if len(words) > 1 else ""
    named += f"the {words[-1]}"
    about = []
    if topic:
        about = [f"When it comes to {topic}, think of {named} too.", f"With {topic}, much depends on {named}."]
        about += [f"And {topic} would not be the same without {named}.", f"No story of {topic} can do without {named}."]
    rest = [
        f"Do not forget {named}.", f"Think of {named} as well.", f"It also has to do with {named}.",
        f"Take a good look at {named} too.", f"Much depends on {named}.",
    ]  # fmt: skip
    rng.shuffle(about)
    rng.shuffle(rest)
    return [*about, *rest]


def _keywords(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    text = " ".join(unit.text for unit in units)
    words = [word for word in kwargs["keywords"] if not re.search(word, text, re.IGNORECASE)] or kwargs["keywords"]
    yield from (_insert(units, sentence) for sentence in _keyword_sentences(words, topic, rng))
    yield from (_insert(units, sentence, at=1) for sentence in _keyword_sentences(words, "", rng)[:2])
    yield _insert(units, f"{capital(' and '.join(words))} too.")


def _frequency(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    word = kwargs["keyword"]
    if kwargs["relation"] == "at least":
        yield from _append_more(units, _keyword_sentences([word], topic, rng))
        yield _insert(units, f"It is all about the {word}, the {word} and the {word}.")
        yield _insert(units, f"{capital(word)} or {word}.")
        return
    pattern = re.compile(re.escape(word), re.IGNORECASE)
    hits = [i for i, unit in enumerate(units) if pattern.search(unit.text)] if len(units) > 1 else []
    yield from (_without(units, i) for i in reversed(hits))
    yield from _drop_where(units, lambda text: pattern.search(text) is not None)
    yield _rewrite(units, lambda text: re.sub(rf"\b{re.escape(word)}\w*", "this", text, flags=re.IGNORECASE))
    yield from _append_more((), stock(rng, topic))


def _forbidden(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    pattern = re.compile(rf"\b({'|'.join(kwargs['forbidden_words'])})\b", re.IGNORECASE)
    hits = sum(pattern.search(unit.text) is not None for unit in units)
    if hits <= len(units) / 2:
        yield from _drop_where(units, lambda text: pattern.search(text) is not None)
    with_article = re.compile(rf"\b(the|a|an|this|that)\s+{pattern.pattern}", re.IGNORECASE)
    yield _rewrite(units, lambda text: pattern.sub("it", with_article.sub("it", text)))
    yield _rewrite(units, lambda text: pattern.sub("it", text))
    yield from _append_more((), [sentence for sentence in stock(rng, "") if not pattern.search(sentence)])


def _letters(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    letter, count = kwargs["letter"], kwargs["let_frequency"]

    def amount(text: str) -> int:
        return text.lower().count(letter)

    if kwargs["let_relation"] == "at least":
        sentences = [*stock(rng, topic), *LETTER_SENTENCES.get(letter, ())]
        yield from _append_more(units, sorted(sentences, key=lambda text: -amount(text) / len(text)))
        return
    kept: list[Unit] = []
    for unit in units:
        if sum(amount(other.text) for other in kept) + amount(unit.text) < count:
            kept.append(unit)
    if kept:
        yield tuple(kept)
    yield from _drop_where(units, lambda text: amount(text) > 0)
    poor = sorted([*stock(rng, topic), *SHORT_STOCK], key=amount)
    for index in range(len(units)):
        fewer = " ".join(word for word in units[index].text.split() if not amount(word))
        if len(fewer.split()) >= 4:
            yield (replace(units[index], text=finished(capital(fewer))),)
    yield from ((Unit("", text),) for text in poor)
    yield from _append_more((), poor)


def _words(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    yield from _append_more(units, stock(rng, topic))
    yield from _shorter(units)
    yield from ((*shorter, Unit(" ", sentence)) for shorter in _shorter(units) for sentence in SHORT_STOCK[:2])


def _fewer_or_more_sentences(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    if kwargs["relation"] == "less than":
        most = kwargs["num_sentences"] - 1
        yield units[:most]
        yield tuple(Unit(" " if i else "", unit.text) for i, unit in enumerate(units[:most]))
        yield units[:1]
        for index in range(len(units) - 2, -1, -1):
            first, second = units[index].text.rstrip(".!?: "), units[index + 1].text
            joined = f"{first}; {second[:1].lower()}{second[1:]}"
            yield (*units[:index], replace(units[index], text=joined), *units[index + 2 :])
        yield (Unit("", finished(re.split(r"[.!?:\n]", units[0].text)[0])),) if units else ()
    else:
        yield from _append_more(units, stock(rng, topic))
        yield from _append_more(units[:1], [*SHORT_STOCK])


def _placeholders(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    sentences = {
        1: ("Ask [name] for more.", "It starts at [time].", "Meet at [place]."),
        2: ("Ask [name] about it on [date].", "Meet [name] at [place]."),
        3: ("Meet [name] at [place] on [date].", "Call [name] at [number] by [date]."),
    }
    for count in (1, 2, 3):
        yield from (_insert(units, sentence) for sentence in rng.sample(sentences[count], len(sentences[count])))


def _no_comma(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    def change(text: str) -> str:
        text = re.sub(r"(?<=\d),(?=\d)", "", text)
        text = re.sub(r",\s*(?=(and|or|but|so|which|who|because|while|then)\b)", " ", text)
        return re.sub(r"\s*,\s*", " ", text)

    yield tuple(Unit(unit.lead.replace(",", ""), change(unit.text)) for unit in units)


def _numbers(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    """Extra numbers become words (list markers go); missing ones come in a sentence."""
    wanted = kwargs["N"]
    left = wanted

    def spell(match: re.Match[str]) -> str:
        nonlocal left
        if left > 0 and "." not in match.group() and "," not in match.group():
            left -= 1
            return match.group()
        value = match.group()
        return DIGITS[int(value)] if value.isdigit() and int(value) < len(DIGITS) else "many"

    unnumbered = tuple(replace(unit, lead=re.sub(r"\d+[.)]\s*", "", unit.lead)) for unit in units)
    yield unnumbered
    spelled = _rewrite(unnumbered, lambda text: re.sub(r"\d[\d,.:/-]*\d|\d", spell, text))
    yield spelled
    for base in (units, unnumbered, spelled):
        yield from (_insert(base, sentence) for sentence in ("It takes about 10 minutes.", "Try it for 5 days."))
        yield _insert(base, "It takes 5 or 10 minutes.")
        yield _insert(base, "Try it for 5 or 10 minutes on 2 days.")
    yield from _drop_where(unnumbered, lambda text: re.search(r"\d", text) is not None)
    kept = tuple(unit for unit in unnumbered if not re.search(r"\d", unit.text))
    yield from (_insert(kept, s) for s in ("It takes 10 minutes.", "It takes 5 or 10 minutes.", "Use 2 or 3 of 5."))


def _conjunctions(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    yield from _append_any(units, CONJUNCTION_SENTENCES)


def _sentence_keyword(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    word, position = kwargs["word"], int(kwargs["N"]) - 1
    ended = _rewrite(units, finished)
    flat = tuple(Unit(" " if i else "", re.sub(r"[*#_]", "", unit.text)) for i, unit in enumerate(ended))
    holds = [i for i, unit in enumerate(flat) if word.lower() in unit.text.lower()]
    if holds and holds[0] > position:
        moved = [unit for i, unit in enumerate(flat) if i != holds[0]]
        order = [*moved[:position], flat[holds[0]], *moved[position:]]
        yield tuple(Unit(" " if i else "", unit.text) for i, unit in enumerate(order))
    for sentence in _keyword_sentences([word], topic, rng):
        for base in (ended, flat):
            yield _insert(base, sentence, at=position)
    opening = [_insert((), sentence) for sentence in stock(rng, topic)][:position]
    yield _insert(opening[0] if opening else (), f"It has to do with the {word}.")


def _pronouns(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    yield from _append_any(units, PRONOUN_SENTENCES)


def _more_content(units: Units, kwargs: Kwargs, rng: random.Random, topic: str) -> Proposals:
    """For forms that a dressing should have met: other content, longer or shorter."""
    yield from _append_more(units, stock(rng, topic)[:6])
    yield from _shorter(units)
    yield _rewrite(units, lambda text: re.sub(r"[*#<>\[\]\"]", "", text))
    yield tuple(Unit(" " if i else "", re.sub(r"[*#<>\[\]\"]", "", unit.text)) for i, unit in enumerate(units))
    yield tuple(Unit(" " if i else "", re.sub(r"[*#<>\[\]\"\n-]", "", unit.text)) for i, unit in enumerate(units[:2]))


CONTENT: dict[str, Callable[[Units, Kwargs, random.Random, str], Proposals]] = {
    "punctuation:no_comma": _no_comma,
    "keywords:forbidden_words": _forbidden,
    "count:numbers": _numbers,
    "length_constraints:number_sentences": _fewer_or_more_sentences,
    "sentence:keyword": _sentence_keyword,
    "keywords:existence": _keywords,
    "keywords:frequency": _frequency,
    "detectable_content:number_placeholders": _placeholders,
    "count:conjunctions": _conjunctions,
    "count:pronouns": _pronouns,
    "keywords:letter_frequency": _letters,
    "count:unique_word_count": _words,
    "length_constraints:number_words": _words,
    "count:word_count_range": _words,
}
LETTER_SENTENCES = {
    "a": ("A cat has a warm nap as a man plays a sad air at an old farm.",),
    "e": ("We see the three green trees here every week.",), "i": ("This big city inn is still his thing in winter.",),
    "s": ("She sits and sees six small ships on the seas so she sings.",),
    "b": ("A bit of bread and butter can be a big boost.",), "k": ("Keep a kind look and take a break.",),
    "p": ("People keep a picture of a happy place.",), "v": ("Every visit gives a vivid view.",),
    "w": ("We will wait and watch how it grows.",), "y": ("You may stay any day.",),
    "f": ("Find a friend for free fun.",), "g": ("Going along is a good thing.",),
}  # fmt: skip


class _Search:
    """One draft's search for a text that meets everything."""

    def __init__(
        self, constraints: Sequence[Constraint], body: Body, *, rng: random.Random, max_tokens: int,
        count_tokens: Callable[[str], int],
    ) -> None:  # fmt: skip
        order = list(CONTENT)
        self.constraints = sorted(constraints, key=lambda c: order.index(c.kind) if c.kind in order else len(order))
        self.body, self.rng, self.max_tokens, self.count_tokens = body, rng, max_tokens, count_tokens
        self.seed = rng.getrandbits(32)

    def state(self, units: Units) -> State:
        body = replace(self.body, units=list(units))
        text = dress(self.constraints, body, seed=self.seed)
        verdict = verify(self.constraints, text)
        fits = self.count_tokens(text) <= self.max_tokens
        return State(units, text, tuple(body.dressings), tuple(one is True for one in verdict.followed), fits)

    def climb(self, units: Units) -> tuple[State, list[str]]:
        """Mend what fails, one edit at a time, until all holds or no edit helps."""
        state, edits = self.state(units), []
        seen = {state.text}
        for _ in range(MAX_ROUNDS):
            if state.done:
                break
            step = self._step(state, seen)
            if step is None:
                break
            name, state = step
            seen.add(state.text)
            edits.append(name)
        return state, edits

    def _step(self, state: State, seen: set[str]) -> tuple[str, State] | None:
        """The first edit that leaves more to hold than before; else one that mends its own target at no loss."""
        sideways = None
        targets: list[tuple[str, int | None]] = [] if state.fits else [(SHORTEN, None)]
        targets += [(c.kind, i) for i, c in enumerate(self.constraints) if not state.followed[i]]
        for name, index in targets:
            best: State | None = None
            for units in self._proposals(name, index, state):
                found = self.state(units)
                mended = found.fits if index is None else found.followed[index]
                if mended and found.text not in seen and (best is None or found.score > best.score):
                    best = found
                if best is not None and best.score > state.score:
                    return name, best
            if best is not None and best.score == state.score and sideways is None:
                sideways = (name, best)
        return sideways

    def _proposals(self, name: str, index: int | None, state: State) -> Proposals:
        if index is None:
            return _shorter(state.units)
        propose = CONTENT.get(name, _more_content)
        return propose(state.units, self.constraints[index].kwargs, self.rng, self.body.topic)


def _starts(constraints: Sequence[Constraint], units: Units, sentence: str) -> Iterator[Units]:
    """Where to start from: the whole draft, its beginning, a generic sentence, and one run of short words.

    The last is for counts so near the cap that every token has to be a word.
    """
    for size in (len(units), 3, 2, 1):
        if units[:size]:
            yield units[:size]
    yield (Unit("", sentence),)
    for kwargs in (constraint.kwargs for constraint in constraints):
        wanted = kwargs.get("num_words") or kwargs.get("min_words") or kwargs.get("N")
        if wanted:
            yield from ((Unit("", capital(" ".join(RUN_ON.split()[: wanted + extra]))),) for extra in range(3))


def mend(
    constraints: Sequence[Constraint],
    text: str,
    *,
    rng: random.Random,
    max_tokens: int,
    count_tokens: Callable[[str], int],
    topic: str = "",
) -> Mended | None:
    """Edit a draft until every verifier passes and it fits `max_tokens`; None where that cannot be done.

    `count_tokens(text)` counts the end token too. A draft that is right already comes back unchanged.
    """
    if verify(constraints, text).passed and count_tokens(text) <= max_tokens:
        return Mended(text, ())
    body = undress(constraints, text, topic=topic)
    last = body.units[-1].text if len(body.units) > 1 else ""
    cut = count_tokens(text) > max_tokens and finished(last) != last
    if cut:
        body.units.pop()
    search = _Search(constraints, body, rng=rng, max_tokens=max_tokens, count_tokens=count_tokens)
    tried: set[Units] = set()
    for units in _starts(constraints, tuple(body.units), stock(rng, topic)[0]):
        if units in tried:
            continue
        tried.add(units)
        state, edits = search.climb(units)
        if state.done and verify(constraints, state.text).passed:
            begun = [SHORTEN] * cut + [CONDENSE] * (units != tuple(body.units))
            return Mended(state.text, tuple(dict.fromkeys([*begun, *edits, *state.dressings])))
    return None
