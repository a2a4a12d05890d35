"""Qwen3's own chat template: training, rollout and evaluation render one prompt, and the model is told not to think."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from uniapl.evaluate_lm import EngineLM
from uniapl.evaluate_tasks import task_manager
from uniapl.records import Constraint, Demonstration, Prompt, Sample, write_jsonl
from uniapl.rollouts import collect, demonstration_sequences

TEXT = "Name a river.\n\nUse no comma; answer in 中文 with {{ braces }}. "
EXPECTED = f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
PROMPT = Prompt("heldout-0", "heldout", TEXT, (Constraint("punctuation:no_comma", {}),))


@pytest.fixture(scope="module")
def template() -> str:
    """The template of Qwen3's hybrid models (Qwen/Qwen3-0.6B, Qwen/Qwen3-4B) as the package trl ships it."""
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("the package trl, which ships Qwen3's chat template, is not installed")
    return (Path(spec.origin).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes with Qwen3's special tokens and template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE({one: i for i, one in enumerate(alphabet)}, []))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    bytes_only.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    bytes_only.add_tokens([AddedToken(word, normalized=False) for word in ("<think>", "</think>")])
    made = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=template
    )
    return made


class Recorder:
    """A sampler that notes the prompts it is given and answers nothing."""

    name = "recorder"

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    def generate(self, prompts: Sequence[list[int]], **_: Any) -> list[Sample]:
        self.prompts += prompts
        return [Sample([1], [0.0], "stop") for _ in prompts]


def engine(sampler: Any, tokenizer: Any) -> EngineLM:
    return EngineLM(sampler, tokenizer, policy=lambda: None, max_model_tokens=4096, micro_batch_tokens=4096)


def test_training_rollout_and_evaluation_render_the_same_prompt(tokenizer: Any, tmp_path: Path) -> None:
    import lm_eval

    rollouts = Recorder()
    (group,) = collect(
        rollouts, [PROMPT], tokenizer=tokenizer, num_rollouts=2, seed_parts=(0,), max_new_tokens=1, temperature=1.0
    )
    demonstration = Demonstration(PROMPT.id, "heldout", 0, "The Rhine", "The Rhine", (), (True,), 9)
    (trained,) = demonstration_sequences([demonstration], {PROMPT.id: PROMPT}, tokenizer=tokenizer)
    write_jsonl(tmp_path / "heldout.jsonl", [PROMPT])
    manager, evaluated = task_manager(tmp_path, foreign=False), Recorder()
    harness: Any = lm_eval
    harness.simple_evaluate(
        model=engine(evaluated, tokenizer), tasks=list(manager.load(["heldout"])["tasks"].values()),
        task_manager=manager, apply_chat_template=True, bootstrap_iters=0,
    )  # fmt: skip
    assert len(group[1]) == len(rollouts.prompts) == 2
    seen = [*rollouts.prompts, trained.prompt_ids, *evaluated.prompts]
    assert len(seen) == 4
    assert [tokenizer.decode(ids) for ids in seen] == [EXPECTED] * 4
    assert all(ids == seen[0] for ids in seen)
    assert tokenizer.decode(trained.prompt_ids + trained.completion_ids) == f"{EXPECTED}The Rhine<|im_end|>"


def test_evaluation_through_lm_evals_class_holds_the_empty_think_block(tokenizer: Any) -> None:
    lm = engine(Recorder(), tokenizer)
    assert lm.apply_chat_template([{"role": "user", "content": TEXT}]) == EXPECTED
    assert tokenizer.decode(lm.tok_encode(EXPECTED)) == EXPECTED
    think = [tokenizer.convert_tokens_to_ids(word) for word in ("<think>", "</think>")]
    assert [one for one in lm.tok_encode(EXPECTED) if one in think] == think  # one token each, as in Qwen3


def test_none_instead_of_false_would_let_the_model_think(tokenizer: Any) -> None:
    message = [{"role": "user", "content": TEXT}]
    for wrong in ({"enable_thinking": None}, {}, {"enable_thinking": True}):
        rendered = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, **wrong)
        assert rendered == EXPECTED.removesuffix("<think>\n\n</think>\n\n")


def test_answers_of_few_shot_examples_carry_no_think_block_and_the_question_does(tokenizer: Any) -> None:
    turns = [("user", "1 + 1?"), ("assistant", "2"), ("user", TEXT)]
    rendered = engine(Recorder(), tokenizer).apply_chat_template([{"role": r, "content": c} for r, c in turns])
    shown = "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
    assert rendered == shown + EXPECTED


def test_a_given_beginning_of_the_answer_is_continued_and_not_closed(tokenizer: Any) -> None:
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "Here is the function:\n```python"}]
    rendered = engine(Recorder(), tokenizer).apply_chat_template(turns, add_generation_prompt=False)
    assert rendered == f"{EXPECTED}Here is the function:\n```python"
