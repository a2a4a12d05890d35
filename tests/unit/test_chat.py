"""The chat template is applied in one place, with thinking off and no special token twice."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from uniapl import chat

WORDS = ("<pad>", "<end>", "<begin>", "user:", "assistant:", "hello", "world", "<think>", "</think>")
TEMPLATE = (
    "<begin> {% for m in messages %}{{ m.role }}: {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant: {% if enable_thinking is false %}<think> </think> {% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    fast = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    fast.pre_tokenizer = WhitespaceSplit()
    fast.post_processor = TemplateProcessing(single="<begin> $A", special_tokens=[("<begin>", 2)])  # as Llama's does
    made = PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<end>", bos_token="<begin>")
    made.chat_template = TEMPLATE
    return made


def test_the_prompt_ends_with_the_generation_prompt_and_thinking_is_off(tokenizer: PreTrainedTokenizerFast) -> None:
    assert chat.render(tokenizer, "hello") == "<begin> user: hello <end> assistant: <think> </think> "


def test_the_templates_special_tokens_are_not_added_a_second_time(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer("hello")["input_ids"] == [2, 5], "this tokenizer adds <begin> by itself"
    ids = chat.prompt_ids(tokenizer, "hello")
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<begin>",
        "user:",
        "hello",
        "<end>",
        "assistant:",
        "<think>",
        "</think>",
    ]


def test_a_completion_is_its_text_and_one_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert chat.completion_ids(tokenizer, "hello world") == [5, 6, 1]
    assert chat.completion_text(tokenizer, [5, 6, 1]) == "hello world"
    assert chat.completion_text(tokenizer, [5, 6]) == "hello world"  # cut at the cap
