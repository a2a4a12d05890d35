"""Simulated studies: their true difference, one cell measured anew, and the page that shows the record."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from bench import intervals

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs/measurements/intervals.json").read_text(encoding="utf-8"))


def test_simulated_studies_have_the_difference_that_they_are_asked_for():
    gain = intervals.gain_of(0.1, seed_sd=5.0)
    assert gain > 0.1, "chances that are cut at 0 and 1 lose some of it"
    assert intervals.true_difference(gain, seed_sd=5.0) == pytest.approx(0.1)
    rng = np.random.default_rng(0)
    means = [v.mean() for v in intervals.simulated(rng, studies=1000, seeds=2, seed_sd=5.0, gain=gain)]
    assert np.mean(means) == pytest.approx(0.1, abs=4 * np.std(means) / math.sqrt(1000))


def test_every_cell_is_there_with_4000_studies_and_the_settings_of_the_bench():
    kinds = {(row["seeds"], row["seed_sd"], row["difference"]) for row in RECORD["rows"]}
    assert kinds == {
        (seeds, sd, difference)
        for seeds in intervals.SEEDS
        for sd in intervals.SEED_SDS
        for difference in intervals.DIFFERENCES
    }
    assert {row["covers"]["of"] for row in RECORD["rows"]} == {intervals.STUDIES}
    assert {name: value for name, value in RECORD.items() if name not in ("rows", "power")} == intervals.SETTINGS


def test_a_cell_measured_anew_is_within_the_error_of_the_simulation():
    wanted = {"seeds": 3, "seed_sd": 2.4, "difference": 0.0}
    (kept,) = [row for row in RECORD["rows"] if wanted.items() <= row.items()]
    found = intervals.measure(**wanted, studies=300)
    assert found.keys() == kept.keys()
    for name in found.keys() - wanted.keys():
        error = math.hypot(found[name]["error"], kept[name]["error"])
        assert found[name]["share"] == pytest.approx(kept[name]["share"], abs=4 * error), name


def test_the_power_that_is_told_is_there_for_every_kind_of_study():
    single = [row for row in RECORD["power"] if not row["strict"]]
    kinds = {(row["seeds"], row["seed_sd"]) for row in single}
    assert kinds == {(seeds, sd) for seeds in intervals.SEEDS for sd in intervals.SEED_SDS}
    strict = {(row["seeds"], row["seed_sd"]) for row in RECORD["power"] if row["strict"]}
    assert strict == {(5, sd) for sd in intervals.SEED_SDS}
    assert {row["found"]["of"] for row in RECORD["power"]} == {intervals.STUDIES}


def test_the_page_shows_the_record():
    page = (ROOT / "docs/statistics.md").read_text(encoding="utf-8")
    assert intervals.table(RECORD["rows"]) in page
    assert intervals.power_table(RECORD["power"]) in page
    most = max(one["error"] for row in RECORD["rows"] for one in row.values() if isinstance(one, dict))
    assert f"standard errors are at most {100 * most:.1f}" in page
