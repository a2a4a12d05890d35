"""A run's exported folder is an ordinary checkpoint: whoever opens it answers greedily as the trainer's weights do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.invariance.open_export import OPENED, lm_eval_answers
from tests.invariance.small_step import Run, make_setting, stage_spec
from tests.invariance.test_ranks import ROOT, launch
from uniapl import chat, train
from uniapl.distributed import ALONE
from uniapl.models import load_policy, load_tokenizer, weights_directory
from uniapl.sampler import explain_fallback
from uniapl.sampler_vllm import ENGINE_SETTINGS

pytestmark = pytest.mark.slow
NEW_TOKENS, PROMPTS = 12, 12


@dataclass
class Exported:
    """A run's folder, prompts, and the greedy answers of the weights that the trainer had in memory."""

    folder: Path
    texts: list[str]
    prompts: list[list[int]]
    answers: list[list[int]]

    def answer_texts(self) -> list[str]:
        tokenizer = load_tokenizer(self.folder)
        return [chat.completion_text(tokenizer, ids) for ids in self.answers]


@torch.no_grad()
def greedy(model: Any, prompt: list[int], end_token_id: int) -> list[int]:
    """The likeliest token again and again, each by a whole forward."""
    answer: list[int] = []
    while len(answer) < NEW_TOKENS and end_token_id not in answer:
        answer.append(int(model(torch.tensor([prompt + answer])).logits[0, -1].argmax()))
    return answer


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("export")
    setting = make_setting(root / "model")
    run = Run(root, setting, stage_spec("uniapl", steps=3, mu=0.3, lambda_adv=0.5))
    done = launch(run, ranks=request.param, weights=root / "weights.safetensors")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    start = weights_directory(setting.model_directory)
    model, tokenizer = load_policy(start, dtype="float32"), load_tokenizer(start)
    # Cut at different words: behind a chat template's last token all answers of a model so small would be alike.
    texts = [" ".join(p.text.split()[: 3 + i]) for i, p in enumerate(setting.prompts[:PROMPTS])]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    before = [greedy(model, prompt, tokenizer.eos_token_id) for prompt in prompts]
    loaded = model.load_state_dict(load_file(root / "weights.safetensors"), strict=False)
    assert loaded.missing_keys == ["lm_head.weight"]  # tied
    answers = [greedy(model, prompt, tokenizer.eos_token_id) for prompt in prompts]
    assert sum(a != b for a, b in zip(answers, before, strict=True)) >= PROMPTS / 3, "training changed hardly an answer"
    assert len(set(map(tuple, answers))) >= PROMPTS / 3
    return Exported(run.directory / "model", texts, prompts, answers)


def test_an_export_carries_a_card_from_the_first_moment_and_a_finished_run_gets_it_again(exported: Exported) -> None:
    run, card = exported.folder.parent, exported.folder / "README.md"
    text, manifest = card.read_text(), (run / "manifest.json").read_text()
    assert "not for production" in text
    assert "`0.7 L_grpo / N_grpo + 0.3 L_sft / N_sft + 0.5 L_adv / N_adv`" in text
    assert "Not evaluated so far" in text
    card.unlink()
    (run / "manifest.json").unlink()  # as a snakemake that is killed just then does
    assert train.already_finished(run, name="run", ranks=ALONE)
    assert card.read_text() == text
    assert (run / "manifest.json").read_text() == manifest


def test_transformers_gives_the_same_greedy_answers(exported: Exported) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(exported.folder)
    assert model.dtype == torch.float32
    for prompt, answer in zip(exported.prompts, exported.answers, strict=True):
        made = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        assert made[0, len(prompt) :].tolist() == answer
    tokenizer = AutoTokenizer.from_pretrained(exported.folder)
    assert tokenizer(exported.texts[0], add_special_tokens=False)["input_ids"] == exported.prompts[0]


def test_lm_eval_gives_the_same_greedy_answers(exported: Exported) -> None:
    from lm_eval.models import huggingface

    engines: Any = huggingface
    model = engines.HFLM(pretrained=str(exported.folder), dtype="float32", device="cpu", batch_size=1)
    assert lm_eval_answers(model, exported.texts, NEW_TOKENS) == exported.answer_texts()


def test_vllm_alone_and_under_lm_eval_gives_the_same_greedy_answers(exported: Exported, tmp_path: Path) -> None:
    if reason := explain_fallback():
        pytest.skip(f"vLLM cannot run here: {reason}")
    asked = {"ids": exported.prompts, "texts": exported.texts, "new_tokens": NEW_TOKENS}
    (tmp_path / "requests.json").write_text(json.dumps(asked))
    done = subprocess.run(
        [sys.executable, "-m", "tests.invariance.open_export", str(exported.folder), str(tmp_path / "requests.json")],
        cwd=ROOT, env=os.environ | ENGINE_SETTINGS | {"TQDM_DISABLE": ""}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    opened = json.loads((tmp_path / OPENED).read_text())
    assert opened["vllm"] == exported.answers
    assert opened["lm_eval"] == exported.answer_texts()
