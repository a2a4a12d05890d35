"""docs/paper_map.md and the code agree: deviations are marked where they happen, every named function exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

from uniapl.analysis.claims import STATEMENTS
from uniapl.layers import available

REPOSITORY = Path(__file__).resolve().parent.parent.parent
PAGE = (REPOSITORY / "docs" / "paper_map.md").read_text()


def _section(title: str) -> str:
    return PAGE.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_the_deviations_on_the_page_are_those_marked_in_the_code():
    marked = set()
    for path in [*REPOSITORY.glob("uniapl/**/*.py"), *REPOSITORY.glob("config/**/*.yaml")]:
        marked |= set(re.findall(r"# (DEVIATION(?:-CANDIDATE)?): ([a-z-]+):", path.read_text()))
    listed = set(re.findall(r"^\| (DEVIATION(?:-CANDIDATE)?) \| ([a-z-]+) \|", PAGE, flags=re.MULTILINE))
    assert len(listed) == 10
    assert marked == listed


def test_every_function_that_the_equations_lead_to_exists():
    names = set(
        re.findall(r"`((?:objectives|advantages|update|rollouts|discriminator_measures|constraints)\.\w+)`", PAGE)
    )
    assert len(names) >= 10
    for name in names:
        module, function = name.split(".")
        assert callable(getattr(importlib.import_module(f"uniapl.{module}"), function)), name


def test_the_page_lists_every_claim_and_every_method():
    assert set(re.findall(r"^\| (C\d) \|", _section("Claims"), flags=re.MULTILINE)) == set(STATEMENTS)
    stages = {stage for path in re.findall(r"`([a-z_.]+)`", _section("Methods")) for stage in path.split(".")}
    assert set(available("methods")) <= stages


def test_every_local_link_of_the_documentation_leads_to_a_file():
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
