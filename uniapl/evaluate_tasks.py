"""The tasks of an evaluation as lm-eval's objects: the suite's own, its benchmarks, and any of lm-eval's by name.

A benchmark of config/evals is lm-eval's own task (prompts, examples, metrics) on rows that are read from its pinned
source, so that it runs offline and on the same bytes everywhere. IFEval is judged by the suite's verifiers, as
`uniapl score` does; HumanEval is a task of the suite, since lm-eval's runs programs outside of a sandbox.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._factory import TaskFactory

from uniapl.benchmarks import read_split
from uniapl.config import BenchmarkSpec, EvalSpec
from uniapl.constraints import known_kinds
from uniapl.ifeval_format import parse_prompts
from uniapl.tasks import answers

TASKS = Path(__file__).resolve().parent / "tasks"
# DEVIATION: evaluations: held-out generated prompts and IFBench; the paper's benchmarks need weights of its size.
OWN_TASKS = ("development", "heldout", "ifbench")  # their prompts are the study's data
CHOICES = "ABCD"
CHANGES = {  # of lm-eval's tasks, recorded beside their results
    "ifeval": "letter frequency of a symbol (keys 1122 and 1129) counts the symbol; lm-eval's draws a random letter",
    "humaneval": "lm-eval's humaneval_instruct, its programs run in the suite's sandbox",
}


class BenchmarkTask(ConfigurableTask):
    """A task of lm-eval whose rows come from `config["benchmark"]`, a BenchmarkSpec."""

    def __init__(self, config: dict[str, Any]) -> None:
        settings = {key: value for key, value in config.items() if key != "class"}
        self._benchmark: BenchmarkSpec = settings.pop("benchmark")
        super().__init__(config=settings)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the splits. Raise ValueError where a file is missing, or the split that examples come from."""
        spec, subject = self._benchmark, str(self.config.dataset_name or "")
        splits = [self.config.test_split or self.config.validation_split]
        if self.config.num_fewshot:
            splits.append(self.config.fewshot_split)
        else:
            self.config.training_split = self.config.fewshot_split = self.fewshot_cfg.split = None
        missing = [str(split) for split in splits if split not in spec.files]
        if missing:
            raise ValueError(f"{spec.title}: 'files' names no split {missing[0]}, which is needed; add it")
        self.dataset = {split: Dataset.from_list(documents(spec, str(split), subject)) for split in splits}


def documents(spec: BenchmarkSpec, split: str, subject: str) -> list[dict[str, Any]]:
    """Rows of a benchmark's split as lm-eval's task wants them."""
    if spec.name == "ifeval":
        rows = enumerate(read_split(spec, split), start=1)
        return [answers.document(prompt) for prompt in parse_prompts(rows, where=spec.title, split=spec.name)]
    rows = read_split(spec, split, subject=subject)
    return [mmlu_document(row) for row in rows] if spec.name == "mmlu" else rows


def mmlu_document(row: dict[str, Any]) -> dict[str, Any]:
    """A question with its choices; in its authors' csv files they are A to D, and the answer is a letter."""
    if "choices" in row:
        return row
    return {
        "question": row["question"], "choices": [row[letter] for letter in CHOICES],
        "answer": CHOICES.index(row["answer"].strip()),
    }  # fmt: skip


def task_manager(data: Path, *, foreign: bool) -> Any:
    """lm-eval's index of tasks: the suite's own, and lm-eval's (which takes seconds) only where one is asked for."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if foreign:
        known_kinds()  # lets nltk find punkt_tab, which lm-eval's ifeval would download
    return TaskManager(include_path=str(TASKS), include_defaults=foreign, metadata={"data_directory": str(data)})


def load_tasks(manager: Any, config: dict[str, Any]) -> list[Any]:
    """Task objects of an evaluation, with their caps on new tokens and, for benchmarks, their number of examples.

    Raise ValueError naming a task that lm-eval does not know or whose data cannot be had offline.
    """
    evaluation = EvalSpec.model_validate(config["evaluation"])
    loaded: list[Any] = []
    for name in evaluation.tasks:
        if name not in manager.task_index:
            raise ValueError(f"evals: unknown task '{name}'; use {', '.join(OWN_TASKS)} or the name of an lm-eval task")
        if name in OWN_TASKS:
            task = manager.load([name])["tasks"][name]
            own_cap = evaluation.ifbench_max_new_tokens if name == "ifbench" else config["data"]["max_new_tokens"]
            set_cap(task, own_cap)
            loaded.append(task)
            continue
        spec = evaluation.benchmarks.get(name)
        try:
            loaded += load_benchmark_tasks(manager, spec) if spec else load_foreign(manager, name)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(f"evals: task '{name}' cannot be loaded here, offline: {reason}") from error
    return loaded


def load_foreign(manager: Any, name: str) -> list[Any]:
    """A task or group of lm-eval as it is."""
    found = manager.load([name])
    return [found["groups"][name]] if found.get("groups") else list(found["tasks"].values())


def load_benchmark_tasks(manager: Any, spec: BenchmarkSpec) -> list[Any]:
    """lm-eval's task or group of a benchmark on the benchmark's own rows."""
    changes: dict[str, Any] = {"class": BenchmarkTask, "benchmark": spec, "dataset_kwargs": None}
    if spec.num_fewshot is not None:
        changes["num_fewshot"] = spec.num_fewshot
    if spec.name == "ifeval":
        changes |= {"process_results": answers.process_results, "metric_list": answers.METRICS}
    if spec.name == "humaneval":
        require_sandbox()
    # TaskManager.load would hand the group's list of subtasks down to each of them, its factory does not.
    factory = TaskFactory(meta=manager.metadata)
    built = factory.build(manager.task_index[spec.name], overrides=changes, registry=manager.task_index)
    if spec.max_new_tokens:
        for task in built.get_all_tasks() if isinstance(built, Group) else [built]:
            set_cap(task, spec.max_new_tokens)
    return [built]


def require_sandbox() -> None:
    """Raise ValueError where programs cannot be run, before a model answers."""
    from uniapl.tasks.humaneval import run_programs

    ((status, verdict),) = run_programs(["assert 1 + 1 == 2"])
    if not verdict:
        raise ValueError(f"the sandbox does not run programs here ({status}); see `uniapl doctor`")


def set_cap(task: Any, max_new_tokens: int) -> None:
    """Set a task's cap on an answer."""
    task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
