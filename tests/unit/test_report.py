"""The page: everything inside it, nothing outside, honest about what was not run."""

from __future__ import annotations

import html.parser
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import records
from uniapl.analysis import tables
from uniapl.analysis.collect import read_study
from uniapl.analysis.outputs import figure_files
from uniapl.analysis.trace import find_cell
from uniapl.report.__main__ import main
from uniapl.report.failures import failures
from uniapl.report.page import Grid, read_table
from uniapl.report.protocol import ablations, protocol, tolerances, trace_command

Builder = Callable[..., dict[str, Any]]


class Links(html.parser.HTMLParser):
    """Targets of links, images and styles, and the tags left open."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                self.targets.append(value or "")
            if name == "id":
                self.ids.add(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(root: Path) -> str:
    """Real tables; drawing is test_figures' part, so that the figures are a few bytes each."""
    tables.main(root, root / "tables")
    (root / "figures").mkdir(exist_ok=True)
    for name in figure_files(json.loads((root / "study.json").read_text())):
        (root / "figures" / name).write_bytes(f"content of {name}".encode())
    main(root, root / "tables", root / "figures", root / "report.html")
    return (root / "report.html").read_text()


def test_the_page_is_one_file_whose_contents_lead_somewhere(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path)
    page = page_of(tmp_path)
    links = Links()
    links.feed(page)
    assert links.open == []
    outside = [t for t in links.targets if not t.startswith(("data:", "#"))]
    assert outside == []
    inside = {t[1:] for t in links.targets if t.startswith("#")}
    assert len(inside) == 13
    assert inside <= links.ids
    assert sum(t.startswith("data:image/svg+xml;base64,") for t in links.targets) == 7


def test_the_page_says_what_is_not_replicated_and_how_it_was_made(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, auc=0.5)
    (tmp_path / "heldout_log.jsonl").write_text(
        json.dumps({"method": "grpo", "seed": 0}) + "\n" + json.dumps({"method": "sft"}) + "\n"
    )
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/train_grpo.tsv").write_text("s\th:m:s\tmax_rss\n421.3\t0:07:01\t2048\n")
    page = page_of(tmp_path)
    for said in (
        "Qwen3 results are not reproduced here", "There is one training seed", "carries no usable signal",
        "The log of held-out evaluations has 2", "c0ffee", "torch 2.11.0", "a processor (avx2), 2 cores, 16 GiB", "421",
        "train_grpo",
        "UniAPL minus GRPO is +40.0", '<span class="verdict not-run">not run</span>',
    ):  # fmt: skip
        assert said in page, said


def test_two_models_and_ablations_are_shown(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, models=("tiny", "small"), methods=("grpo", "uniapl"), variants={"lambda_adv.5": 2})
    page = page_of(tmp_path)
    assert page.count("data:image/svg+xml;base64,") == 16
    assert "Table 6. Ablations" in page
    assert "No log of held-out evaluations" in page


def test_the_page_prints_each_methods_loss_with_its_numbers_and_what_was_not_run(
    tmp_path: Path, study_builder: Builder
) -> None:
    index = study_builder(tmp_path, methods=("sft", "grpo", "sft.grpo", "uniapl"))
    page = page_of(tmp_path)
    for said in (
        "0.9 L_grpo / N_grpo + 0.1 L_sft / N_sft + 0.2 L_adv / N_adv",
        "<td>L_sft / N_sft</td>",
        "<td>L_grpo / N_grpo</td>",
        "A = (r - mean r) / (std r + 0.0001); clip to [0.8, 1.2], c at most 2; 8 prompts with 8 rollouts each a step",
        "<li><code>L_off = - sum A p / (p + gamma)</code>: ",
        "</span> at laptop scale",
    ):
        assert said in page, said
    assert 'id="not-run"' not in page
    missing = {"model": "smollm2_135m", "method": "uniapl", "variant": "lambda_adv.5"}
    index["not_run"] = [missing | {"seed": seed} for seed in (0, 1)]
    (tmp_path / "study.json").write_text(json.dumps(index))
    assert "<li>model smollm2_135m, UniAPL, lambda_adv.5: seeds 0, 1</li>" in page_of(tmp_path)


def test_the_same_study_gives_the_same_page(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("grpo",))
    first = page_of(tmp_path)
    assert page_of(tmp_path) == first


def test_text_of_a_study_cannot_break_the_page(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo",))
    index["models"]["smollm2_135m"]["title"] = "<script>a | b</script>"
    (tmp_path / "study.json").write_text(json.dumps(index))
    page = page_of(tmp_path)
    assert "<script>a" not in page
    assert "&lt;script&gt;a | b&lt;/script&gt;" in page


def test_tables_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    table = "| A | B |\n| --- | --- |\n| **section** |  |\n| x \\| y | 1.0 [0.5, 1.5], p = 0.010 |"
    text = f"**Table 3. A title**\n\n{table}\n\nA note.\n"
    (tmp_path / "table3.md").write_text(text)
    part = read_table(tmp_path / "table3.md", 3)
    grid, note = part.pieces
    assert (part.title, note) == ("A title", "A note.")
    assert isinstance(grid, Grid)
    assert [len(row) for row in grid.rows] == [1, 2]
    assert grid.rows[1][0] == "x | y"
    assert grid.rows[1][1] == '1.0&nbsp;<span class="faint">[0.5, 1.5]</span><br><span class="faint">p = 0.010</span>'


@pytest.mark.parametrize("missing", ["tables/table2.md", "figures/figure3_smollm2_135m.svg"])
def test_a_missing_table_or_figure_is_one_line_of_error(tmp_path: Path, study_builder: Builder, missing: str) -> None:
    study_builder(tmp_path, methods=("grpo",))
    page_of(tmp_path)
    (tmp_path / missing).unlink()
    options = [
        "--tables",
        str(tmp_path / "tables"),
        "--figures",
        str(tmp_path / "figures"),
        "--output",
        str(tmp_path / "x.html"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "uniapl.report", str(tmp_path), *options], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert missing in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.html").exists()


def test_a_score_far_from_the_published_one_is_said_beside_the_limits(tmp_path: Path, study_builder: Builder) -> None:
    rows = [{"task": "ifeval", "metrics": ["prompt_strict"], "score": 54.5, "source": "a report", "no_check": ""}]
    study_builder(
        tmp_path, methods=("grpo",), tasks=("heldout", "ifbench", "ifeval"), references={"smollm2_135m": rows}
    )
    page = page_of(tmp_path)
    # base solves 4 of 20
    warning = (
        "scores 20.0% on IFEval, published are 54.5%. The difference of 34.5 points is above the tolerance of 5.0."
    )
    assert f'<p class="warning">Stack check: model smollm2_135m {warning}</p>' in page
    assert "Table 7. Base models against published scores" in page
    assert 'href="#stack"' in page


def test_a_trial_says_so_and_general_tasks_stand_among_the_results(tmp_path: Path, study_builder: Builder) -> None:
    scored = {"mmlu": {"acc,none": 0.25, "acc_stderr,none": 0.01, "sample_len": 400}}
    index = study_builder(tmp_path, methods=("grpo",), tasks=("heldout", "mmlu"), results={"base": scored})
    (tmp_path / "study.json").write_text(json.dumps(index | {"limit": 3}))
    page = page_of(tmp_path)
    assert "only the first 3 questions of each task were asked" in page
    assert "Table 8. General capability" in page


def test_the_protocol_has_the_studys_own_sizes_seeds_and_tolerances(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(
        tmp_path, methods=("grpo", "uniapl"), seeds=(0, 4), variants={"lambda_adv.5": 2},
        claims={"num_resamples": 77, "degrade_points": 3.5},
    )  # fmt: skip
    page = page_of(tmp_path)
    study = read_study(tmp_path)
    told = dict(protocol(study))
    assert told["Prompt sets"] == "40 training, 20 held-out"
    assert told["Evaluations"].startswith("Held-out (20 prompts), IFBench (8 prompts); one greedy answer")
    assert told["Training seeds"] == "0, 4 (GRPO, UniAPL); ablations' variants: 2 each"
    assert "77 draws of seeds and of prompts" in told["Intervals"]
    assert "Table 6: " in told["Several tests"]
    assert "Table 9: " not in told["Several tests"]
    assert {name: value for name, value, _ in tolerances(study)}["claims.degrade_points"] == "3.5"
    assert all(meaning for *_, meaning in tolerances(study))
    assert "Satterthwaite" in page


def test_one_seed_is_not_said_to_have_intervals_over_seeds(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("grpo",))
    told = dict(protocol(read_study(tmp_path)))
    assert "There is one training seed: Wilson's interval" in told["Intervals"]
    assert "Satterthwaite" not in "".join(told.values())
    assert "McNemar" in told["Differences"]


def test_failures_are_counted_from_the_records(tmp_path: Path, study_builder: Builder) -> None:
    index = study_builder(tmp_path, methods=("grpo", "uniapl"), variants={"lambda_adv.5": 2})
    demonstrations = tmp_path / index["demonstrations"]["smollm2_135m"]
    manifest = json.loads((demonstrations / "manifest.json").read_text())
    (demonstrations / "manifest.json").write_text(json.dumps(manifest | {"dropped": 2, "num_orders": 40}))
    reasons = [json.dumps({"prompt_id": str(i), "reason": "no room for the list"}) + "\n" for i in range(2)]
    (demonstrations / "dropped.jsonl").write_text("".join(reasons))
    for run, job in zip(index["runs"], (99, 5, 99), strict=True):  # steps of each took 12.5 s
        measured = tmp_path / "benchmarks" / f"{run['directory']}.tsv"
        measured.parent.mkdir(parents=True)
        measured.write_text(f"s\th:m:s\tmax_rss\n{job}\t0:01:00\t2048\n")
        path = tmp_path / run["directory"] / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"train_seconds": 12.5}))
    said = failures(read_study(tmp_path), [("C1", "not run"), ("C5", "not supported"), ("C6", "supported")])
    assert said == [
        "Claims not supported: C5.",
        "Claims inconclusive: none.",
        "Claims not run: C1.",
        "IFBench: 1 of 8 prompts could not be judged (unavailable: POS tagger), in 4 evaluations; they are in no"
        " accuracy.",
        "Demonstrations dropped, since no fitting answer was found: 2 of 40 (demonstrations/smollm2_135m-00000000): no"
        " room for the list (2).",
        f"Interrupted and resumed from a checkpoint, at least: {index['runs'][1]['directory']}.",
    ]
    page = page_of(tmp_path)
    left = [row["claim"] for row in records(tmp_path / "tables", 2) if row["verdict"] == "not run"]
    assert {"C1", "C9"} < set(left) < {f"C{i}" for i in range(1, 10)}
    assert f"<li>Claims not run: {', '.join(left)}.</li>" in page


def test_ablations_are_told_by_title_and_change_where_the_index_has_them(
    tmp_path: Path, study_builder: Builder
) -> None:
    index = study_builder(tmp_path, methods=("sft.grpo", "uniapl"), variants={"lambda_adv.5": 2})
    assert "What each variant changes" not in page_of(tmp_path)
    changed = [
        {"of": "uniapl", "key": "lambda_adv", "main": 0.2, "variant": 5.0},
        {"of": "sft.grpo", "key": "mu", "main": 0.1, "variant": {"peak": 0.9, "valley": 0.05}},
        {"of": "discriminator", "key": "reads", "main": None, "variant": "noise"},
    ]
    index["ablations"] = {
        "lambda_adv": {"title": "Weight of the term", "variants": {"5": changed}},
        "unused": {"title": "Not of this study", "variants": {"x": []}},
    }
    (tmp_path / "study.json").write_text(json.dumps(index))
    assert ablations(read_study(tmp_path)) == [
        ("Weight of the term",),
        (
            "lambda_adv.5",
            "UniAPL: lambda_adv 0.2 → 5; SFT → GRPO: mu 0.1 → peak 0.9, valley 0.05; discriminator: reads noise",
        ),
    ]
    page = page_of(tmp_path)
    assert page.index("Weight of the term") < page.index("Table 6. Ablations")


def test_the_command_that_the_page_names_finds_a_cell(tmp_path: Path, study_builder: Builder) -> None:
    study_builder(tmp_path, methods=("grpo",))
    study = read_study(tmp_path)
    command = trace_command(study)
    assert f'<code id="trace">{command}</code>' in page_of(tmp_path)
    _, _, number, *options = command.split()
    given = dict(zip(options[::2], options[1::2], strict=True))
    cell = find_cell(tables.all_tables(study), int(number), given["--row"], given["--column"])
    assert cell.shown == "0.400000"  # 8 of 20


def test_the_summary_speaks_of_the_prompts_that_claims_are_made_on(tmp_path: Path, study_builder: Builder) -> None:
    tasks = ("heldout", "ifbench", "ifeval")
    study_builder(tmp_path, methods=("grpo", "uniapl"), tasks=tasks, claims={"evaluation": "ifbench"})
    page = page_of(tmp_path)
    assert "of 7 IFBench prompts before training" in page  # of 8, one cannot be judged
    assert "Table 11, Figure 5 and the summary above: IFBench prompts" in page
