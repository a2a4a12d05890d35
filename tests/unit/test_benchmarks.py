"""The paper's benchmarks through lm-eval on local files: rows, examples, caps, results, and clear errors."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_evaluate import MODEL, directories, make_study
from uniapl import models
from uniapl.benchmarks import read_split
from uniapl.config import BenchmarkSpec, ConfigError, ModelSpec
from uniapl.evaluate import evaluate_study
from uniapl.evaluate_tasks import load_tasks, task_manager
from uniapl.layers import available, load_benchmark, load_study
from uniapl.provenance import read_manifest
from uniapl.records import read_jsonl
from uniapl.tasks.programs import whole_program

COLUMNS = ["question", "A", "B", "C", "D", "answer"]
SYMBOL = {
    "key": 1122, "prompt": "Tweet with four #.", "instruction_id_list": ["keywords:letter_frequency"],
    "kwargs": [{"letter": "#", "let_frequency": 4, "let_relation": "less than"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def manager() -> Any:
    return task_manager(Path(), foreign=True)


def subjects(manager: Any, prefix: str) -> list[str]:
    """Subjects of lm-eval's tasks whose names begin so."""
    configs = [entry.cfg or {} for name, entry in manager.task_index.items() if name.startswith(prefix)]
    return sorted({str(config["dataset_name"]) for config in configs if config.get("dataset_name")})


def local_benchmarks(folder: Path, manager: Any) -> dict[str, Any]:
    """Small files of every form: jsonl, jsonl in gzip, csv without header in a zip archive, csv with header."""
    folder.mkdir()
    (folder / "ifeval.jsonl").write_text(json.dumps(SYMBOL) + "\n")
    sums = [{"question": f"{i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(7)]
    (folder / "sums.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, sums)).encode()))
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as archive:
        for subject in subjects(manager, "mmlu_"):
            row = f'"Which of {subject}, please?",a,b,"c, too",d,C\n'
            archive.writestr(f"data/dev/{subject}_dev.csv", row * 5)
            archive.writestr(f"data/test/{subject}_test.csv", row * 2)
    for subject in subjects(manager, "ceval-valid_"):
        for split, count in (("dev", 5), ("val", 2)):
            path = folder / split / f"{subject}_{split}.csv"
            path.parent.mkdir(exist_ok=True)
            path.write_text(
                "id,question,A,B,C,D,answer,explanation\n" + f"0,{subject}是什么？,一,二,三,四,B,无\n" * count
            )
    mmlu = {"test": "data/test/{subject}_test.csv", "dev": "data/dev/{subject}_dev.csv"}
    sums_twice = dict.fromkeys(("train", "test"), "sums.jsonl.gz")
    return {
        "ifeval": {"location": str(folder), "files": {"train": "ifeval.jsonl"}, "max_new_tokens": 6},
        "gsm8k": {"location": str(folder), "files": sums_twice, "max_new_tokens": 6},
        "mmlu": {"location": str(folder / "mmlu.zip"), "files": mmlu, "columns": COLUMNS},
        "ceval-valid": {
            "location": str(folder), "files": {"dev": "dev/{subject}_dev.csv", "val": "val/{subject}_val.csv"}
        },
    }  # fmt: skip


def resolved(benchmarks: dict[str, Any], **evaluation: Any) -> dict[str, Any]:
    """The evaluation section of a smoke study with these benchmarks."""
    layer = {"tasks": list(benchmarks), "benchmarks": benchmarks} | evaluation
    return load_study("smoke", {"evaluation": layer}).evaluation.model_dump(mode="json")


@pytest.mark.slow
def test_a_study_with_local_benchmark_files_gets_results_and_records(tmp_path: Path, manager: Any) -> None:
    benchmarks = local_benchmarks(tmp_path / "files", manager)
    for name in ("mmlu", "ceval-valid"):
        benchmarks[name]["num_fewshot"] = 1  # speed
    evaluation = resolved(benchmarks, limit=2)
    study_file = make_study(tmp_path, **evaluation)
    index = json.loads(study_file.read_text())
    index["evaluations"] = index["evaluations"][:1]
    study_file.write_text(json.dumps(index))
    model, tokenizer = models.build_model(ModelSpec.model_validate(MODEL))
    models.save_model(model, tokenizer, tmp_path / "models/tiny-x/weights")
    evaluate_study(study_file)
    (directory,) = directories(tmp_path)
    results = json.loads((directory / "results.json").read_text())
    assert results["versions"]["ifeval"] == 4.0  # lm-eval's
    assert "counts the symbol" in results["changes"]["ifeval"]
    assert results["results"]["mmlu"]["sample_len"] == 2 * 57
    assert results["results"]["ceval-valid"]["sample_len"] == 2 * 52
    for task, metric in (("mmlu", "acc"), ("ceval-valid", "acc")):
        assert isinstance(results["results"][task][f"{metric}_stderr,none"], float), "claim C9 needs a standard error"
    assert "exact_match,strict-match" in results["results"]["gsm8k"]
    ((_, row),) = read_jsonl(directory / "ifeval.jsonl")
    assert row["prompt_id"] == "ifeval-1122"
    assert row["num_tokens"] <= 6
    assert row["strict"] == [bool(row["response"].strip()) and row["response"].count("#") < 4]
    assert read_manifest(directory)["tasks"]["ifeval"]["num_prompts"] == 1
    log = [line for _, line in read_jsonl(tmp_path / "heldout_log.jsonl")]
    assert [line["task"] for line in log] == ["ifeval"]


def test_questions_come_after_as_many_examples_as_configured(tmp_path: Path, manager: Any) -> None:
    benchmarks = local_benchmarks(tmp_path / "files", manager)
    for name, shots in (("mmlu", 5), ("gsm8k", 5), ("ifeval", 0), ("ceval-valid", 5)):
        (task,) = load_tasks(manager, {"evaluation": resolved({name: benchmarks[name]})})
        first = task.get_all_tasks()[0] if name in ("mmlu", "ceval-valid") else task
        assert first.config.num_fewshot == shots
    none = benchmarks["gsm8k"] | {"num_fewshot": 0}
    (task,) = load_tasks(manager, {"evaluation": resolved({"gsm8k": none})})
    assert task.fewshot_context(task.test_docs()[0], 0) == "Question: 0 + 0?\nAnswer:"


def test_the_real_files_are_read_whole(eval_data: Path, manager: Any) -> None:
    mmlu = {"test": "data/test/{subject}_test.csv", "dev": "data/dev/{subject}_dev.csv"}
    benchmarks = {
        "ifeval": {"location": str(eval_data), "files": {"train": "ifeval_input_data.jsonl"}},
        "gsm8k": {
            "location": str(eval_data), "files": {"test": "gsm8k_test.jsonl", "train": "gsm8k_train_first100.jsonl"}
        },
        "mmlu": {"location": str(eval_data / "mmlu.zip"), "files": mmlu, "columns": COLUMNS},
    }  # fmt: skip
    ifeval, gsm8k, group = load_tasks(manager, {"evaluation": resolved(benchmarks)})
    assert (len(ifeval.test_docs()), len(gsm8k.test_docs())) == (541, 1319)
    assert sum(len(task.test_docs()) for task in group.get_all_tasks()) == 14042
    assert ifeval.config.generation_kwargs["max_gen_toks"] == 1280
    anatomy = next(task for task in group.get_all_tasks() if task.config.dataset_name == "anatomy")
    question = anatomy.test_docs()[0]
    assert question["choices"][question["answer"]] == "paralysis of the facial muscles."
    spec = BenchmarkSpec.model_validate(
        load_benchmark("humaneval").model_dump() | {"location": str(eval_data), "files": {"test": "HumanEval.jsonl.gz"}}
    )
    assert read_split(spec, "test") == read_split(load_benchmark("humaneval"), "test")  # the package's file


def test_every_benchmark_of_config_is_pinned() -> None:
    specs = [load_benchmark(name) for name in available("evals")]
    assert {spec.name for spec in specs} >= {"ifeval", "ifbench", "mmlu", "gsm8k", "humaneval", "ceval-valid"}
    assert all(spec.package or spec.revision for spec in specs)
    assert not any(spec.location for spec in specs)


def test_a_program_ends_where_its_code_block_ends() -> None:
    document = {"prompt": "def f():\n", "test": "def check(c):\n    assert c() == 1\n", "entry_point": "f"}
    program = whole_program(document, "    return 1\n```\nThis function returns 1.")
    assert program == "def f():\n    return 1\n\ndef check(c):\n    assert c() == 1\n\ncheck(f)\n"


def test_programs_run_in_the_sandbox_and_the_published_solutions_pass() -> None:
    pytest.importorskip("uniapl.sandbox", reason="this version has no sandbox, so that HumanEval cannot be evaluated")
    from uniapl.tasks.humaneval import process_results, run_programs

    rows = read_split(load_benchmark("humaneval"), "test")
    outcomes = run_programs([whole_program(row, row["canonical_solution"]) for row in rows])
    assert outcomes == [("ok", True)] * 164
    assert process_results(rows[0], ["    return None\n"]) == {"pass@1": 0.0, "not_computed": "ok"}
    assert run_programs(["while True: pass"])[0][1] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"location": "nowhere"}, "GSM8K: .*nowhere is neither a folder nor a zip archive; mend its 'location'"),
        ({"files": {"test": "none.jsonl"}}, "holds no none.jsonl"),
        ({"files": {"test": "broken.jsonl"}}, "broken.jsonl cannot be read"),
        ({"files": {"test": "broken.parquet"}}, "broken.parquet cannot be read"),
        ({"files": {"test": "sums.txt"}}, "sums.txt cannot be read: its name ends in none of"),
        ({"files": {"test": "broken.jsonl.gz"}}, "broken.jsonl.gz cannot be read"),
    ],
)
def test_a_benchmark_that_cannot_be_read_is_one_line(
    tmp_path: Path, manager: Any, change: dict[str, Any], message: str
) -> None:
    for name in ("broken.jsonl", "broken.parquet", "sums.txt", "broken.jsonl.gz"):
        (tmp_path / name).write_text("{")
    evaluation = resolved({"gsm8k": {"location": str(tmp_path), "num_fewshot": 0} | change})
    with pytest.raises(ValueError, match=f"evals: task 'gsm8k' cannot be loaded here, offline: .*{message}") as error:
        load_tasks(manager, {"evaluation": evaluation})
    assert "\n" not in str(error.value)


def test_a_benchmark_that_is_not_in_the_cache_names_the_command_that_fetches_it(manager: Any) -> None:
    command = "hf download openai/gsm8k --repo-type dataset --revision 740312add88f781978c0658806c59bc2815b9866"
    with pytest.raises(ValueError, match=command):
        load_tasks(manager, {"evaluation": resolved({"gsm8k": {}})})


def test_a_wrong_key_of_a_benchmark_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"--config: evaluation.benchmarks.gsm8k.locations = 'x': unknown key;"):
        resolved({"gsm8k": {"locations": "x"}})
    with pytest.raises(ConfigError, match=r"evaluation.benchmarks.gsm9k: unknown; known: ceval-valid, gsm8k"):
        load_study("smoke", {"evaluation": {"tasks": ["gsm8k"], "benchmarks": {"gsm9k": {}}}})
    with pytest.raises(ConfigError, match="benchmarks = 3: expected keys and values"):
        load_study("smoke", {"evaluation": {"tasks": ["gsm8k"], "benchmarks": 3}})
