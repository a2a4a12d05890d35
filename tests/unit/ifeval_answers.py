"""Answers to IFEval's prompts made from the prompts' own parameters, so that every kind is followed and broken."""

from __future__ import annotations

from typing import Any

LANGUAGE_SAMPLES = {
    "de": "Der Hund läuft schnell über den grünen Hügel und freut sich.",
    "fr": "Le chien court vite sur la colline verte.",
    "it": "Il cane corre veloce sulla collina verde e poi torna a casa.",
    "ru": "Собака быстро бежит по зелёному холму.",
    "hi": "कुत्ता हरी पहाड़ी पर तेज़ दौड़ता है।",
    "fa": "سگ به سرعت از روی تپه سبز می دود.",
    "ko": "개가 푸른 언덕 위를 빠르게 달린다.",
    "th": "สุนัขวิ่งอย่างรวดเร็วบนเนินเขาสีเขียว",
    "kn": "ನಾಯಿ ಹಸಿರು ಬೆಟ್ಟದ ಮೇಲೆ ವೇಗವಾಗಿ ಓಡುತ್ತದೆ.",
    "bg": "Кучето бяга бързо по зеления хълм и се радва.",
}
# What a model may write that is no plain prose.
ODD = (
    "", " \n\t ", "\u00a0\u2003", "***", "******", "\n\n\n", "{}", "[]", "null", '{"a": NaN}', '```json\n{"a": 1}\n```',
    '```JSON {"a": [1, 2]}```', "{'a': 1}", "🙂🙂🙂", "\u2028one\u2029two", "a\x00b", "12345 67890", "<<>>",
    "<<a>>\n<<b>>", '"', '""', '"a"', "* ", "*a* **b** ***c***", "- - -", "* one\r\n* two", "P.S.", "p.s. x", "P.P.S x",
    "I.", "?!?!",
    "Section 1\nSECTION 2", "[ ] [] [a[b]]", "My answer is yes.", "MY ANSWER IS NO.",
    "İSTANBUL ıssız ß", "e\u0301 a\u0308",
    "<think>\n\n</think>\n\nAn answer, with a comma.", "A" * 5000, "word " * 400, "It rains. " * 60, "\ud800",
)  # fmt: skip


def fitting(kind: str, kwargs: dict[str, Any]) -> str:
    """A text that follows one instruction; of some languages there is no sample."""
    relation = kwargs.get("relation") or kwargs.get("let_relation") or kwargs.get("capital_relation")
    many = relation != "less than"

    def times(text: str, key: str) -> str:
        return text * int(kwargs[key]) if many else "Nothing."

    texts = {
        "keywords:existence": lambda: " ".join(kwargs["keywords"]) + ".",
        "keywords:frequency": lambda: times(f"{kwargs['keyword']} ", "frequency"),
        "keywords:forbidden_words": lambda: "Nothing at all.",
        "keywords:letter_frequency": lambda: times(kwargs["letter"], "let_frequency"),
        "language:response_language": lambda: LANGUAGE_SAMPLES.get(kwargs["language"], "no sample"),
        "length_constraints:number_sentences": lambda: times("It rains. ", "num_sentences"),
        "length_constraints:number_paragraphs": lambda: "\n***\n".join(["One."] * kwargs["num_paragraphs"]),
        "length_constraints:number_words": lambda: times("word ", "num_words"),
        "length_constraints:nth_paragraph_first_word": lambda: "\n\n".join(
            [f"{kwargs['first_word']} is it."] * kwargs["num_paragraphs"]
        ),
        "detectable_content:number_placeholders": lambda: "[name] " * kwargs["num_placeholders"],
        "detectable_content:postscript": lambda: f"Hello.\n{kwargs['postscript_marker']} Bye.",
        "detectable_format:number_bullet_lists": lambda: "* item\n" * kwargs["num_bullets"],
        "detectable_format:constrained_response": lambda: "My answer is maybe.",
        "detectable_format:number_highlighted_sections": lambda: "*part* " * kwargs["num_highlights"],
        "detectable_format:multiple_sections": lambda: "".join(
            f"{kwargs['section_spliter']} {i + 1}\nText.\n" for i in range(kwargs["num_sections"])
        ),
        "detectable_format:json_format": lambda: '```json\n{"answer": [1, 2]}\n```',
        "detectable_format:title": lambda: "<<Bees>>\nThey hum.",
        "combination:two_responses": lambda: "One.\n******\nTwo.",
        "combination:repeat_prompt": lambda: f"{kwargs['prompt_to_repeat']}\nAn answer.",
        "startend:end_checker": lambda: f"Bees hum. {kwargs['end_phrase']}",
        "startend:quotation": lambda: '"Bees hum."',
        "change_case:capital_word_frequency": lambda: times("BEES ", "capital_frequency"),
        "change_case:english_capital": lambda: "THE DOG RAN FAST OVER THE GREEN HILL AND BACK AGAIN.",
        "change_case:english_lowercase": lambda: "the dog ran fast over the green hill and back again.",
        "punctuation:no_comma": lambda: "Bees hum; wasps sting.",
    }
    return texts[kind]()


def answers_to(row: dict[str, Any], position: int) -> list[str]:
    """Three answers to one prompt: a part for each instruction, one of these alone or framed, an odd one."""
    parts = [fitting(kind, kwargs) for kind, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True)]
    framed = f"Sure, here it is:\n**{parts[0]}**\nDoes this help?" if position % 2 else parts[position % len(parts)]
    return ["\n\n".join(parts), framed, ODD[position % len(ODD)]]
