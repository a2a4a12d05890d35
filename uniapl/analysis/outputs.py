"""Names of the files that tables and figures write, from study.json alone; the Snakefile declares them as outputs."""

from __future__ import annotations

from typing import Any

from uniapl.analysis.labels import BASELINE, CHORD, TASKS, UNIAPL

TABLES = (1, 2, 3, 4, 5)
ABLATION_TABLE, REFERENCE_TABLE, GENERAL_TABLE, EXPERT_TABLE, OVERVIEW_TABLE, COST_TABLE = 6, 7, 8, 9, 10, 11
TERM_TABLE, PAIRS_TABLE = 12, 13
FIGURES = (1, 2, 3, 4, 5, 6, 7)
WEIGHT_FIGURE, SWITCH_FIGURE = 8, 9
# How variants of these ablations begin.
LAMBDA, SWITCH, JUDGES = "lambda_adv.", "switch.", "discriminator."
ADVERSARIAL_AS, OTHER_EXPERTS = "adversarial_as.", "teacher."
TABLE_FORMATS = ("csv", "md", "tex")
FIGURE_FORMATS = ("pdf", "svg", "png", "txt")


def has_ablations(study_index: dict[str, Any]) -> bool:
    """Some evaluation is of another variant than `main`."""
    return any(entry["variant"] != "main" for entry in study_index["evaluations"])


def has_references(study_index: dict[str, Any]) -> bool:
    """Some base model has a published score on a task of the study."""
    return bool(study_index.get("references", {}).get("models"))


def has_variants(study_index: dict[str, Any], prefix: str) -> bool:
    """Some evaluation is of a variant that begins so."""
    return any(entry["variant"].startswith(prefix) for entry in study_index["evaluations"])


def has_comparison(study_index: dict[str, Any]) -> bool:
    """UniAPL and GRPO were both evaluated, and on what claims are made on."""
    if study_index["claims"].get("evaluation", "heldout") not in study_index["tasks"]:
        return False
    return {UNIAPL, BASELINE} <= {entry["method"] for entry in study_index["evaluations"] if entry["variant"] == "main"}


def without_term(method: str) -> str:
    """The same pipeline without the adversarial term; empty where it has none."""
    without = ".".join(CHORD if stage == UNIAPL else stage.removeprefix("a_") for stage in method.split("."))
    return without if without != method else ""


def has_term(study_index: dict[str, Any]) -> bool:
    """Some method was evaluated with and without the adversarial term."""
    main = {(e["model"], e["method"]) for e in study_index["evaluations"] if e["variant"] == "main"}
    return any((model, without_term(method)) in main for model, method in main)


def general_tasks(study_index: dict[str, Any]) -> list[str]:
    """Tasks of which only lm-eval's accuracies are kept: MMLU and the like."""
    return [task for task in study_index.get("tasks", ()) if task not in TASKS]


def table_numbers(study_index: dict[str, Any]) -> tuple[int, ...]:
    """Tables 1 to 5, 10 and 13; 6 of ablations, 7 of published scores, 8 of general tasks, 9 of other experts, 11 of
    costs, 12 of the adversarial term where the study has them."""
    optional = (
        (ABLATION_TABLE, has_ablations(study_index)), (REFERENCE_TABLE, has_references(study_index)),
        (GENERAL_TABLE, bool(general_tasks(study_index))), (EXPERT_TABLE, has_variants(study_index, OTHER_EXPERTS)),
        (OVERVIEW_TABLE, True), (COST_TABLE, has_comparison(study_index)),
        (TERM_TABLE, has_term(study_index)), (PAIRS_TABLE, True),
    )  # fmt: skip
    return (*TABLES, *(number for number, is_there in optional if is_there))


def table_files(study_index: dict[str, Any]) -> list[str]:
    """File names that `uniapl.analysis.tables` writes into its output directory."""
    return [f"table{number}.{suffix}" for number in table_numbers(study_index) for suffix in TABLE_FORMATS]


def figure_numbers(study_index: dict[str, Any]) -> tuple[int, ...]:
    """Figures 1 to 7, 8 and 9 where the study has the ablations that they show."""
    optional = ((WEIGHT_FIGURE, LAMBDA), (SWITCH_FIGURE, SWITCH))
    return (*FIGURES, *(number for number, prefix in optional if has_variants(study_index, prefix)))


def figure_files(study_index: dict[str, Any]) -> list[str]:
    """File names that `uniapl.analysis.figures` writes into its output directory; .txt holds the caption."""
    return [
        f"figure{number}_{model}.{suffix}"
        for number in figure_numbers(study_index)
        for model in study_index["models"]
        for suffix in FIGURE_FORMATS
    ]
