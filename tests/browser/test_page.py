"""The page in a real browser: filters, explorer, keyboard, curves; no request, and a silent console."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.conftest import build_study
from uniapl.analysis import figures, tables
from uniapl.analysis.labels import COLOURS, OTHER_COLOURS
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
    shown = [{"prompt_id": p["id"], "split": "heldout", "take": 0, "text": f"the expert on {p['id']}"} for p in prompts]
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


@pytest.fixture
def opened(page_file: Path) -> Iterator[Any]:
    """The page, and what went wrong while it was used: console messages, errors, requests but for itself."""
    wrong: list[str] = []
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        page.goto(page_file.as_uri())
        yield page
        browser.close()
    assert wrong == []


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


def test_outcome_and_kind_and_words_filter_the_prompts(opened: Any) -> None:
    every = ids(opened)
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


def test_print_leaves_out_what_needs_a_screen(opened: Any) -> None:
    opened.emulate_media(media="print")
    assert not opened.is_visible("#explorer")
    assert opened.is_visible("#table1")


def test_the_page_is_small_and_one_file(page_file: Path) -> None:
    assert page_file.stat().st_size < 8_000_000
