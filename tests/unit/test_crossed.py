"""Seeds crossed with prompts: a hand-worked table, coverage, Holm's level and power in simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.intervals import STRICTEST, false_families, power_as_told, simulated
from uniapl.analysis.crossed import POWER, MeanError, two_way
from uniapl.analysis.stats import Resampling, holm, paired_difference

SIMULATIONS = 4000


def test_interval_and_test_of_a_hand_worked_table():
    # 2 seeds x 3 prompts: mean 3.5, seed means 2 and 5, prompt means 2, 3, 5.5, residuals +-(0.5, 0.5, -1).
    # MS_seed = 3 (1.5^2 + 1.5^2) = 13.5, MS_prompt = 2 (2.25 + 0.25 + 4) / 2 = 6.5, MS_error = 2 (0.25 + 0.25 + 1) / 2.
    values = np.array([[1.0, 2.0, 3.0], [3.0, 4.0, 8.0]])
    total = 13.5 + 6.5 - 1.5
    df = total**2 / (13.5**2 / 1 + 6.5**2 / 2 + 1.5**2 / 2)
    half = scipy_stats.t.ppf(0.975, df) * math.sqrt(total / 6)
    crossed = two_way(values)
    assert crossed.interval(0.95) == (pytest.approx(3.5 - half), pytest.approx(3.5 + half))
    assert crossed.p == pytest.approx(2 * scipy_stats.t.sf(3.5 / math.sqrt(total / 6), df))
    # The strict one: the mean square of 1 degree of freedom is above 0.06418 of the true one in 80 of 100.
    bound = 13.5 / 0.0641848
    fewer = (bound + 6.5 - 1.5) ** 2 / (bound**2 / 1 + 6.5**2 / 2 + 1.5**2 / 2)
    assert 1 < fewer < df
    assert crossed.strict_p == pytest.approx(2 * scipy_stats.t.sf(3.5 / math.sqrt(total / 6), fewer), rel=1e-5)


def test_seeds_that_agree_leave_the_strict_p_what_it_is_and_others_make_it_larger():
    agree = two_way(np.array([[1.0, 2.0, 6.0], [2.0, 1.0, 6.0]]))
    apart = two_way(np.array([[1.0, 2.0, 6.0], [2.0, 3.0, 8.0]]))
    assert agree.strict_p == agree.p < 1
    assert apart.strict_p > 1.2 * apart.p


def coverage(*, seeds: int, seed_sd: float) -> float:
    """How often the 95% interval holds the true difference, 0."""
    rng, covered = np.random.default_rng(int(10 * seed_sd) + seeds), 0
    for values_SP in simulated(rng, studies=SIMULATIONS, seeds=seeds, seed_sd=seed_sd):
        low, high = two_way(values_SP).interval(0.95)
        covered += low <= 0 <= high
    return covered / SIMULATIONS


@pytest.mark.parametrize("seed_sd", [0.0, 1.0, 2.4, 5.0])
def test_95_percent_intervals_of_5_seeds_cover_the_truth_in_93_to_97_percent(seed_sd: float):
    found = coverage(seeds=5, seed_sd=seed_sd)  # of 4,000, so its standard error is 0.0034
    assert 0.93 <= found <= 0.97, found


@pytest.mark.parametrize(("seeds", "least"), [(3, 0.91), (2, 0.88)])
def test_fewer_seeds_cover_less_where_seeds_differ_much_and_enough_where_they_do_not(seeds: int, least: float):
    assert coverage(seeds=seeds, seed_sd=0.0) >= 0.93
    assert coverage(seeds=seeds, seed_sd=5.0) >= least


def test_holm_multiplies_the_smallest_p_of_a_family_by_its_size():
    rng = np.random.default_rng(7)
    tests = [
        paired_difference(values_SP, 0 * values_SP, np.ones((5, 200)), draws=Resampling(9, 3, 0.95), names=("a",))
        for values_SP in simulated(rng, studies=80, seeds=5, seed_sd=5.0)
    ]
    assert np.mean([one.strict_p > one.p for one in tests]) > 0.5
    for start in range(0, 80, 4):
        family = tests[start : start + 4]
        smallest = min(one.strict_p for one in family)
        assert smallest >= min(one.p for one in family)
        assert min(holm(family, confidence=0.95)) == pytest.approx(min(1.0, 4 * smallest))


@pytest.mark.parametrize(("seeds", "seed_sd", "size"), [(5, 1.0, 4), (5, 7.1, 15), (3, 5.0, 15)])
def test_holm_keeps_the_family_of_false_findings_at_5_percent(seeds: int, seed_sd: float, size: int):
    rng = np.random.default_rng(7)
    each = simulated(rng, studies=size * SIMULATIONS, seeds=seeds, seed_sd=seed_sd)
    wrong, families = false_families([two_way(values_SP).strict_p for values_SP in each], size=size)
    error = math.sqrt(0.05 * 0.95 / families)
    assert (families, wrong / families <= 0.05 + 2 * error) == (SIMULATIONS, True)


@pytest.mark.parametrize(
    ("seeds", "seed_sd", "confidence", "strict", "power"),
    [
        (5, 0.0, 0.95, False, POWER), (5, 2.4, 0.95, False, POWER), (5, 2.4, 0.99, False, POWER),
        (5, 2.4, 0.95, True, POWER), (5, 2.4, STRICTEST, True, POWER), (5, 5.0, STRICTEST, True, 0.85),
        (3, 0.0, 0.95, False, 0.74), (3, 2.4, 0.99, False, 0.75),
    ],
)  # fmt: skip
def test_the_smallest_difference_seen_is_found_in_four_of_five_studies_of_5_seeds_and_in_fewer_of_3(
    seeds: int, seed_sd: float, confidence: float, strict: bool, power: float
):
    # Few seeds give few degrees of freedom, which are estimated too: see docs/statistics.md.
    rng, kind = np.random.default_rng(8), {"seeds": seeds, "seed_sd": seed_sd, "confidence": confidence}
    told = power_as_told(rng, **kind, strict=strict, studies=1000, tried=SIMULATIONS)
    assert told["found"]["share"] == pytest.approx(power, abs=0.05)


def test_of_two_seeds_and_prompts_what_is_printed_is_found_in_three_of_five_studies():
    rng = np.random.default_rng(13)
    told = power_as_told(rng, seeds=2, seed_sd=2.4, confidence=0.95, studies=400, tried=SIMULATIONS)
    assert 0.5 <= told["found"]["share"] <= 0.7, told


def test_of_two_seeds_the_noncentral_t_is_right_where_only_seeds_differ():
    # Prompts and answers add nothing, so there is 1 degree of freedom in every study and the error is known but for it.
    rng = np.random.default_rng(12)

    def studies(difference: float) -> list[MeanError]:
        each = rng.normal(difference, 1, (SIMULATIONS, 2, 1))
        return [two_way(np.repeat(seeds_S1, 3, axis=1)) for seeds_S1 in each]

    middle = sorted(studies(0.0), key=lambda design: design.error)[SIMULATIONS // 2]  # prints the median, as error does
    printed = middle.smallest_seen(confidence=0.95)
    assert np.mean([design.p < 0.05 for design in studies(printed)]) == pytest.approx(0.8, abs=0.03)
    known = MeanError(10.0, 1 / math.sqrt(2), 1.0, 1.0)
    tried = np.mean([design.p < 0.05 for design in studies(10.0)])
    assert tried == pytest.approx(known.power(10.0, confidence=0.95), abs=0.03)


def test_prompts_alone_would_cover_too_rarely_where_seeds_differ():
    rng, crossed, prompts = np.random.default_rng(2), 0, 0
    for _ in range(200):
        values = rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.4, (1, 120)) + rng.normal(0, 0.3, (5, 120))
        low, high = two_way(values).interval(0.95)
        crossed += low <= 0 <= high
        means = values.mean(axis=0)
        half = 1.98 * means.std(ddof=1) / math.sqrt(120)
        prompts += abs(means.mean()) <= half
    assert prompts < 170 < crossed
