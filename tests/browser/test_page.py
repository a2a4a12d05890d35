"""The page in a real browser: filters, explorer, keyboard, curves; no request, and a silent console."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import build_study
from uniapl.analysis import figures, tables
from uniapl.analysis.labels import COLOURS, OTHER_COLOURS
from uniapl.analysis.outputs import figure_files
from uniapl.report.__main__ import main

BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium)")

PROMPTS = 12  # of the built study's held-out prompts, with constraints of two kinds


def with_texts(root: Path, index: dict[str, Any]) -> None:
    """What the explorer reads beside the records: prompts, demonstrations, answers."""
    kinds = {}
    for entry in index["evaluations"]:
        path = root / entry["directory"] / "heldout.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row["response"] = f"{entry['method']} answers </script> {row['prompt_id']}"
            kinds[row["prompt_id"]] = row["kinds"]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [
        {
            "id": name, "text": f"Write about {name}.", "group": "seen",
            "constraints": [{"kind": kind, "text": f"rule {kind}"} for kind in found],
        }
        for name, found in kinds.items()
    ]  # fmt: skip
    (root / index["data"] / "heldout.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    shown = [
        {
            "prompt_id": p["id"], "split": "heldout", "take": 0, "text": f"the expert on {p['id']}", "num_tokens": 7,
            "followed": [True, number % 2 == 0],
        }
        for number, p in enumerate(prompts)
    ]  # fmt: skip
    for directory in index["demonstrations"].values():
        (root / directory / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in shown))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    index = build_study(root, methods=("sft", "grpo", "uniapl"))
    with_texts(root, index)
    tables.main(root, root / "tables")
    figures.main(root, root / "figures")
    main(root, root / "tables", root / "figures", root / "report.html")
    return root / "report.html"


@contextmanager
def opened_page(path: Path, **options: Any) -> Iterator[Any]:
    """A page, and what went wrong while it was used: console messages, errors, requests but for itself."""
    wrong: list[str] = []
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        own = (path.as_uri(), "data:")
        page.on("request", lambda r: None if r.url.startswith(own) else wrong.append(r.url))
        page.goto(path.as_uri())
        yield page
        browser.close()
    assert wrong == []


@pytest.fixture
def opened(page_file: Path) -> Iterator[Any]:
    with opened_page(page_file) as page:
        yield page


def ids(page: Any) -> list[str]:
    return page.eval_on_selector_all("#pick-list li", "nodes => nodes.map(node => node.dataset.id)")


def test_a_prompt_shows_every_methods_answer_with_its_verdicts(opened: Any) -> None:
    every = ids(opened)
    assert len(every) > PROMPTS
    opened.click(f"#pick-list li[data-id='{every[2]}']")
    assert opened.inner_text("#pick-shown h3") == every[2]
    labels = opened.eval_on_selector_all("#pick-shown .answer h4", "nodes => nodes.map(node => node.textContent)")
    assert labels == ["Expert", "Base", "SFT", "GRPO", "UniAPL"]
    text = opened.inner_text("#pick-shown")
    assert f"the expert on {every[2]}" in text
    assert f"uniapl answers </script> {every[2]}" in text
    assert "followed" in text


def cards(page: Any) -> dict[str, str]:
    """Text of each card shown, by its heading."""
    pairs = page.eval_on_selector_all(
        "#pick-shown .answer", "nodes => nodes.map(node => [node.querySelector('h4').textContent, node.innerText])"
    )
    return dict(pairs)


def test_a_chosen_method_stands_beside_the_expert_and_grpo_alone(opened: Any) -> None:
    every = ids(opened)
    opened.click(f"#pick-list li[data-id='{every[3]}']")
    opened.select_option("#pick-method", "sft")
    assert opened.inner_text("#pick-shown h3") == every[3]
    assert list(cards(opened)) == ["Expert", "SFT", "GRPO"]
    assert ids(opened) == every
    opened.select_option("#pick-method", "")
    assert list(cards(opened)) == ["Expert", "Base", "SFT", "GRPO", "UniAPL"]


def test_with_all_methods_an_outcome_counts_where_some_method_has_it(opened: Any) -> None:
    opened.select_option("#pick-outcome", "won")
    some = set(ids(opened))
    each = []
    for method in ("base", "sft", "grpo", "uniapl"):
        opened.select_option("#pick-method", method)
        each.append(set(ids(opened)))
    assert some == set().union(*each)
    assert len(some) == 8  # UniAPL solves the first 16, GRPO the first 8


def test_the_experts_answer_has_its_verdicts(opened: Any) -> None:
    every = ids(opened)
    told = []
    for name in every[:2]:
        opened.click(f"#pick-list li[data-id='{name}']")
        told.append(cards(opened)["Expert"])
    assert "follows all · 7 tokens" in told[0]
    assert "not followed" not in told[0]
    assert "fails · 7 tokens" in told[1]
    assert told[1].count("not followed") == 1


def test_outcome_and_kind_and_words_filter_the_prompts(opened: Any) -> None:
    every = ids(opened)
    opened.select_option("#pick-method", "uniapl")
    opened.select_option("#pick-outcome", "won")
    won = ids(opened)
    opened.select_option("#pick-outcome", "lost")
    lost = ids(opened)
    assert 0 < len(won) < len(every)
    assert not set(won) & set(lost)
    opened.select_option("#pick-outcome", "won")
    pair = "n => [n.querySelector('h4').textContent, n.querySelector('.told').className]"
    shown = opened.eval_on_selector_all("#pick-shown .answer", f"nodes => nodes.map({pair})")
    told = dict(shown)
    assert "held" in told["UniAPL"]
    assert "broken" in told["GRPO"]
    opened.select_option("#pick-outcome", "")
    kinds = opened.eval_on_selector_all("#pick-kind option", "nodes => nodes.map(node => node.value)")
    counts = []
    for kind in kinds[1:]:
        opened.select_option("#pick-kind", kind)
        counts.append(len(ids(opened)))
        assert f"{len(ids(opened))} of {len(every)} prompts" == opened.inner_text("#pick-count")
    assert all(0 < count <= len(every) for count in counts)
    opened.select_option("#pick-kind", "")
    opened.fill("#pick-words", every[3].upper())
    assert every[3] in ids(opened)
    opened.fill("#pick-words", "nothing has these words")
    assert ids(opened) == []
    assert opened.inner_text("#pick-shown") == ""


def test_the_list_is_used_by_keyboard_alone(opened: Any) -> None:
    every = ids(opened)
    opened.focus("#pick-words")
    opened.keyboard.press("Tab")
    for key, at in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", len(every) - 1), ("Home", 0)):
        opened.keyboard.press(key)
        assert opened.inner_text("#pick-shown h3") == every[at]


def test_curves_say_the_nearest_point(opened: Any) -> None:
    box = opened.locator("#hover-curves > svg").bounding_box()
    opened.locator("#hover-curves").scroll_into_view_if_needed()
    box = opened.locator("#hover-curves > svg").bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1)
    assert "step 6: training reward 0.6" in opened.inner_text("#hover-curves .told")
    opened.focus("#hover-curves > svg")
    before = opened.inner_text("#hover-curves .told")
    opened.keyboard.press("ArrowLeft")
    assert opened.inner_text("#hover-curves .told") != before
    opened.select_option("#curve-metric", "length/mean_tokens")
    assert opened.locator("#hover-curves > svg").get_attribute("aria-label") == "tokens an answer over training steps"


def test_curves_are_told_by_a_tap_on_a_phone(page_file: Path) -> None:
    with opened_page(page_file, viewport={"width": 390, "height": 800}, has_touch=True) as page:
        page.locator("#hover-curves > svg").tap(position={"x": 300, "y": 40})
        assert "training reward" in page.inner_text("#hover-curves .told")


def test_a_model_without_trained_runs_has_no_chart_of_another(page_file: Path, tmp_path: Path) -> None:
    before, script, after = re.split(r'(?<=id="curves">)(.*?)(?=</script>)', page_file.read_text(), maxsplit=1)
    untrained = {"untrained": {"title": "An untrained model", "metrics": {}, "methods": []}}
    (tmp_path / "page.html").write_text(before + json.dumps(json.loads(script) | untrained) + after)
    with opened_page(tmp_path / "page.html") as page:
        page.select_option("#curve-model", "untrained")
        assert page.inner_text("#hover-curves") == "No run of this model was trained."
        page.select_option("#curve-model", index=0)
        assert page.locator("#hover-curves polyline").count() > 1


# The contrast (WCAG 2) of an element's computed colour with the page's ground, for each colour that is tried on it.
CONTRASTS = """(node, [property, colours]) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const linear = (v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
    return .2126 * r + .7152 * g + .0722 * b + .05;
  };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return colours.map((colour) => {
    node.style.setProperty("--method", colour);
    const own = light(getComputedStyle(node)[property]);
    return Math.max(own, ground) / Math.min(own, ground);
  });
}"""


@pytest.mark.parametrize(
    ("element", "part"),
    [
        ("#pick-shown .answer", "borderLeftColor"),
        ("#hover-curves polyline", "stroke"),
        ("#hover-curves .legend line", "stroke"),
        ("#hover-curves circle", "fill"),
    ],
)
def test_every_methods_colour_stands_out_in_the_dark(opened: Any, element: str, part: str) -> None:
    opened.emulate_media(color_scheme="dark")
    colours = [*COLOURS.values(), *OTHER_COLOURS]
    contrasts = dict(zip(colours, opened.locator(element).first.evaluate(CONTRASTS, [part, colours]), strict=True))
    assert len(set(contrasts.values())) > len(colours) / 2, "the element has not the method's colour"
    assert not {colour: ratio for colour, ratio in contrasts.items() if ratio < 3}


def test_curves_are_told_apart_without_colour(opened: Any) -> None:
    read = "nodes => nodes.map(node => getComputedStyle(node).strokeDasharray)"
    lines, legend = (
        opened.eval_on_selector_all(f"#hover-curves {part}", read) for part in ("polyline", ".legend line")
    )
    assert len(set(lines)) == len(lines) > 1
    assert legend == lines


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 800)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_screen_and_text_stands_out(
    opened: Any, width: int, height: int, scheme: str
) -> None:
    opened.set_viewport_size({"width": width, "height": height})
    opened.emulate_media(color_scheme=scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = opened.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    bright = [sum(map(int, colour.strip("rgb()").split(", ")[:3])) for colour in (ink, paper)]
    assert (bright[0] < bright[1]) == (scheme == "light")
    assert abs(bright[0] - bright[1]) > 400


def test_wide_tables_and_figures_are_scrolled_by_keyboard(opened: Any) -> None:
    opened.set_viewport_size({"width": 390, "height": 800})
    assert opened.locator("figure img").first.bounding_box()["width"] == 640
    boxes = opened.locator(".scroll").all()
    assert len(boxes) > 15
    names = [box.get_attribute("aria-label") for box in boxes if box.get_attribute("role") == "region"]
    assert len(names) == len(boxes)
    assert all(names)
    figure = opened.locator("figure .scroll").first
    figure.focus()
    opened.keyboard.press("ArrowRight")
    opened.wait_for_function("document.activeElement.scrollLeft > 0")


def test_what_is_folded_is_printed(opened: Any) -> None:
    count = opened.locator("details").count()
    assert count > 1
    opened.click("details >> nth=0 >> summary")
    opened.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.locator("details[open]").count() == count
    opened.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.locator("details[open]").count() == 1


def test_print_leaves_out_what_needs_a_screen(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert not opened.is_visible("#explorer")
    assert opened.is_visible("#table1")


def test_the_page_is_small_and_one_file(page_file: Path) -> None:
    assert page_file.stat().st_size < 8_000_000


RELEASED = Path(__file__).parents[2] / "results/released/laptop"


@pytest.mark.skipif(not RELEASED.is_dir(), reason="no results are released here")
def test_the_released_studys_page_has_its_rows_and_prompts_and_filters_by_its_records(tmp_path: Path) -> None:
    index = json.loads((RELEASED / "study.json").read_text())
    (tmp_path / "figures").mkdir()
    for name in figure_files(index):  # drawing them is not this test's part
        (tmp_path / "figures" / name).write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 504 216"/>')
    main(RELEASED, RELEASED / "tables", tmp_path / "figures", tmp_path / "report.html")
    prompts = [json.loads(line) for line in (RELEASED / index["data"] / "heldout.jsonl").read_text().splitlines()]
    passed = {method: first_seeds_verdicts(index, method) for method in ("grpo", "uniapl")}
    with open(RELEASED / "tables/table1.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with opened_page(tmp_path / "report.html") as page:
        shown = page.locator("#table1 + .scroll tbody tr:not(:has(.section))").count()
        assert shown == len(rows)
        assert ids(page) == [prompt["id"] for prompt in prompts]
        page.select_option("#pick-method", "uniapl")
        for outcome, ours, theirs in (("won", True, False), ("lost", False, True)):
            page.select_option("#pick-outcome", outcome)
            expected = {
                name for name in passed["grpo"] if (passed["uniapl"][name], passed["grpo"][name]) == (ours, theirs)
            }
            assert set(ids(page)) == expected != set()
        page.select_option("#pick-outcome", "")
        kind = prompts[0]["constraints"][0]["kind"]
        page.select_option("#pick-kind", kind)
        assert ids(page) == [p["id"] for p in prompts if kind in [one["kind"] for one in p["constraints"]]]
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "names of runs are long"


def first_seeds_verdicts(index: dict[str, Any], method: str) -> dict[str, bool]:
    """Whether the answer of a method's main run with seed 0 follows all constraints, by prompt."""
    wanted = (method, "main", 0)
    (entry,) = [e for e in index["evaluations"] if (e["method"], e["variant"], e["seed"]) == wanted]
    lines = (RELEASED / entry["directory"] / "heldout.jsonl").read_text().splitlines()
    return {row["prompt_id"]: row["prompt_strict"] for row in map(json.loads, lines)}
