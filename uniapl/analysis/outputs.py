"""Names of the files that tables and figures write, from study.json alone; the Snakefile declares them as outputs."""

from __future__ import annotations

from typing import Any

from uniapl.analysis.labels import TASKS

TABLES = (1, 2, 3, 4, 5)
ABLATION_TABLE, REFERENCE_TABLE, GENERAL_TABLE, EXPERT_TABLE = 6, 7, 8, 9
OTHER_EXPERTS = "teacher."  # how variants with another expert begin
FIGURES = (1, 2, 3, 4)
TABLE_FORMATS = ("csv", "md", "tex")
FIGURE_FORMATS = ("pdf", "png", "txt")


def has_ablations(study_index: dict[str, Any]) -> bool:
    """Some evaluation is of another variant than `main`."""
    return any(entry["variant"] != "main" for entry in study_index["evaluations"])


def has_references(study_index: dict[str, Any]) -> bool:
    """Some base model has a published score on a task of the study."""
    return bool(study_index.get("references", {}).get("models"))


def has_other_experts(study_index: dict[str, Any]) -> bool:
    """Some method was taught by another expert too."""
    return any(entry["variant"].startswith(OTHER_EXPERTS) for entry in study_index["evaluations"])


def general_tasks(study_index: dict[str, Any]) -> list[str]:
    """Tasks of which only lm-eval's accuracies are kept: MMLU and the like."""
    return [task for task in study_index.get("tasks", ()) if task not in TASKS]


def table_numbers(study_index: dict[str, Any]) -> tuple[int, ...]:
    """Tables 1 to 5, 6 where the study has ablations, 7 of published scores, 8 of general tasks, 9 of other experts."""
    optional = (
        (ABLATION_TABLE, has_ablations(study_index)), (REFERENCE_TABLE, has_references(study_index)),
        (GENERAL_TABLE, bool(general_tasks(study_index))), (EXPERT_TABLE, has_other_experts(study_index)),
    )  # fmt: skip
    return (*TABLES, *(number for number, is_there in optional if is_there))


def table_files(study_index: dict[str, Any]) -> list[str]:
    """File names that `uniapl.analysis.tables` writes into its output directory."""
    return [f"table{number}.{suffix}" for number in table_numbers(study_index) for suffix in TABLE_FORMATS]


def figure_files(study_index: dict[str, Any]) -> list[str]:
    """File names that `uniapl.analysis.figures` writes into its output directory; .txt holds the caption."""
    return [
        f"figure{number}_{model}.{suffix}"
        for number in FIGURES
        for model in study_index["models"]
        for suffix in FIGURE_FORMATS
    ]
