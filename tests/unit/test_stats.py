"""Intervals, tests and distances: hand-worked numbers, coverage in small simulations, edge cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bench.intervals import PROMPTS
from uniapl.analysis import stats
from uniapl.analysis.crossed import two_way
from uniapl.analysis.stats import Resampling

SIMULATIONS = 4000
DRAWS = Resampling(num_resamples=499, seed=3, confidence=0.95)


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=float)


def test_one_binary_seed_gets_wilsons_interval():
    # 8 of 20: centre (0.4 + z^2/40) / (1 + z^2/20), half width z sqrt(0.4 0.6/20 + z^2/1600) / (1 + z^2/20), z = 1.96
    hits = row(*[1] * 8, *[0] * 12)
    estimate = stats.accuracy(hits, np.ones_like(hits), draws=DRAWS, names=("a",))
    assert estimate.value == pytest.approx(0.4)
    assert (estimate.low, estimate.high) == (pytest.approx(0.2188, abs=1e-4), pytest.approx(0.6134, abs=1e-4))


def test_instruction_accuracy_is_a_ratio_of_sums():
    # prompts with 1 of 1, 1 of 3 and 2 of 2 instructions: 4 of 6, not the mean 7/9 of their shares
    estimate = stats.accuracy(row(1, 1, 2), row(1, 3, 2), draws=DRAWS, names=("a",))
    assert estimate.value == pytest.approx(4 / 6)
    assert estimate.low <= estimate.value <= estimate.high


def test_mcnemar_counts_only_the_discordant_prompts():
    # 6 prompts solved by the first alone, 1 by the second alone: 2 (C(7,0) + C(7,1)) / 2^7 = 16/128
    first = np.array([1] * 6 + [0] * 1 + [1] * 10 + [0] * 3)
    second = np.array([0] * 6 + [1] * 1 + [1] * 10 + [0] * 3)
    assert stats.mcnemar_p(first, second) == pytest.approx(0.125)
    assert stats.mcnemar_p(first, first) == 1.0


def test_paired_difference_of_equal_systems_is_zero_with_p_one():
    hits = row(1, 0, 1, 1)
    estimate = stats.paired_difference(hits, hits, np.ones_like(hits), draws=DRAWS, names=("a",))
    assert (estimate.value, estimate.low, estimate.high, estimate.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_difference_of_instructions_uses_the_exchange_of_systems():
    # each of 4 prompts follows 1 more of its 2 instructions: 4/8; all 16 sign patterns, 2 as extreme: p = 2/16
    estimate = stats.paired_difference(
        row(2, 2, 2, 2), row(1, 1, 1, 1), np.full((1, 4), 2.0), draws=DRAWS, names=("a",)
    )
    assert (estimate.value, estimate.test) == (0.5, "permutation")
    assert estimate.p == pytest.approx(2 / 16)


def test_several_seeds_take_the_two_way_interval_and_show_the_bootstrap():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, (3, 40)).astype(float) for _ in range(2))
    estimate = stats.paired_difference(first, second, np.ones((3, 40)), draws=DRAWS, names=("a",))
    assert estimate.test == "two-way t"
    assert (estimate.low, estimate.high) == two_way(first - second).interval(0.95)
    assert estimate.bootstrap_low < estimate.value < estimate.bootstrap_high


def test_an_estimate_in_another_unit_or_from_another_origin_keeps_both_intervals_around_it():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, (3, 40)).astype(float) for _ in range(2))
    points = stats.paired_difference(first, second, np.ones((3, 40)), draws=DRAWS, names=("a",)).scaled(100)
    assert points.bootstrap_low < points.value < points.bootstrap_high
    assert points.bootstrap_high - points.bootstrap_low > 1
    moved = points.shifted(-26.3)
    assert moved.bootstrap_low == pytest.approx(points.bootstrap_low - 26.3)
    assert (moved.value - moved.low, moved.high - moved.value) == (
        pytest.approx(points.value - points.low), pytest.approx(points.high - points.value)
    )  # fmt: skip
    assert math.isnan(moved.p), "the test was against the old origin"


def test_the_interval_of_a_share_ends_at_0_and_1_and_that_of_other_numbers_does_not():
    rare = np.zeros((3, 40))
    rare[0, :6] = 1.0  # all in one seed
    found = stats.mean(rare, draws=DRAWS, names=("a",))
    assert (found.low, found.value) == (0.0, pytest.approx(0.05))
    assert stats.mean(1 - rare, draws=DRAWS, names=("a",)).high == 1.0
    assert stats.mean(-rare, draws=DRAWS, names=("a",)).high > 0.0


def test_two_seeds_do_not_say_what_they_would_find_and_three_do():
    rng = np.random.default_rng(14)
    for seeds, known in ((2, False), (3, True)):
        hits_SP, other_SP = (rng.integers(0, 2, (seeds, PROMPTS)) for _ in range(2))
        gap = stats.paired_difference(hits_SP, other_SP, np.ones_like(hits_SP), draws=DRAWS, names=("a",))
        assert math.isfinite(gap.p)
        assert math.isfinite(gap.smallest_seen(confidence=0.95)) is known


def test_wasserstein_and_ks_equal_scipys():
    rng = np.random.default_rng(3)
    answers, expert = rng.integers(5, 60, (1, 50)).astype(float), rng.integers(10, 40, (1, 50)).astype(float)
    wasserstein, ks = stats.distances(answers, expert, draws=DRAWS)
    assert wasserstein.value == pytest.approx(scipy_stats.wasserstein_distance(answers[0], expert[0]))
    assert ks.value == pytest.approx(scipy_stats.ks_2samp(answers[0], expert[0])[0])
    assert wasserstein.low <= wasserstein.value <= wasserstein.high


def test_a_shift_by_three_tokens_is_a_distance_of_three():
    expert = row(10, 12, 20, 30)
    wasserstein, ks = stats.distances(expert + 3, expert, draws=DRAWS)
    assert wasserstein.value == pytest.approx(3.0)
    assert ks.value == pytest.approx(0.5)  # at 12: half of the expert's, none of the answers


def test_distance_intervals_cover_a_known_distance():
    rng, covered, runs = np.random.default_rng(4), 0, 150
    for _ in range(runs):
        shared = rng.normal(size=150)
        answers = 44 + 14 * shared + 14 * rng.normal(size=150)
        expert = 40 + 14 * shared + 14 * rng.normal(size=150)
        estimate, _ = stats.distances(answers[None], expert[None], draws=DRAWS)
        covered += estimate.low <= 4.0 <= estimate.high
    assert covered / runs >= 0.88


def test_distance_reduction_has_the_claims_sign():
    # the expert, a method 1 token longer, another 5 tokens longer: reduction 5 - 1
    expert = np.arange(10.0, 40.0)[None]
    names = ("a",)
    closer, closer_ks = stats.distance_reduction(expert + 1, expert + 5, expert, expert, draws=DRAWS, names=names)
    farther, _ = stats.distance_reduction(expert + 5, expert + 1, expert, expert, draws=DRAWS, names=names)
    assert closer_ks.value == pytest.approx(4 / 30)
    assert (closer.test, closer_ks.test) == ("permutation", "permutation")
    assert (closer.value, farther.value) == (pytest.approx(4.0), pytest.approx(-4.0))
    assert closer.low > 0 > farther.high
    assert closer.p < 0.05


def test_distance_reduction_of_equal_methods_is_not_significant():
    expert = np.arange(10.0, 40.0)[None]
    for seeds in (1, 3):
        answers = np.repeat(expert + 2, seeds, axis=0)
        shown = np.repeat(expert, seeds, axis=0)
        for same in stats.distance_reduction(answers, answers, shown, shown, draws=DRAWS, names=("a",)):
            assert (same.value, same.p) == (0.0, 1.0)


def lengths(rng: np.random.Generator, usual_P: np.ndarray, *, seeds: int, seed_sd: float) -> np.ndarray:
    """Lengths of one method's answers, S x P, cut at 48 tokens; each training moves all of them together."""
    moved_S1 = rng.normal(0, seed_sd, (seeds, 1))
    return np.clip(np.round(usual_P + moved_S1 + rng.normal(0, 10, (seeds, PROMPTS))), 1, 48)


def false_findings(*, seeds: int, seed_sd: float, largest_gap: bool = False) -> float:
    """How often two methods of one distribution get an interval of the reduction that leaves 0 out."""
    rng, wrong, grid = np.random.default_rng(int(10 * seed_sd) + seeds), 0, np.arange(1.0, 49.0)
    for _ in range(SIMULATIONS):
        usual_P = rng.normal(33, 8, PROMPTS)
        expert_SP = np.clip(np.round(usual_P - 5 + rng.normal(0, 8, PROMPTS)), 1, 48)[None].repeat(seeds, axis=0)
        terms = [
            stats.gap(lengths(rng, usual_P, seeds=seeds, seed_sd=seed_sd), expert_SP, grid).linearised()[largest_gap]
            for _ in range(2)
        ]
        wrong += two_way(terms[0] - terms[1]).p < 0.05
    return wrong / SIMULATIONS


@pytest.mark.parametrize(("seeds", "seed_sd"), [(5, 0.0), (5, 3.5), (3, 2.0)])
def test_a_reduction_between_equal_methods_is_found_in_5_of_100_studies_however_their_seeds_differ(
    seeds: int, seed_sd: float
):
    found = false_findings(seeds=seeds, seed_sd=seed_sd)  # its standard error is 0.0034
    assert 0.03 <= found <= 0.07, found


def test_the_largest_gaps_reduction_keeps_the_level_too():
    assert false_findings(seeds=5, seed_sd=2.0, largest_gap=True) <= 0.07


def test_several_seeds_of_a_distance_count_as_seeds():
    # three trainings, 4 tokens apart: prompts alone would give a narrow interval
    rng = np.random.default_rng(5)
    usual_P, expert_SP = rng.normal(33, 5, PROMPTS), np.repeat(rng.normal(28, 5, (1, PROMPTS)), 3, axis=0)
    answers_SP = usual_P + np.array([[-4.0], [0.0], [4.0]]) + rng.normal(0, 2, (3, PROMPTS))
    wasserstein, _ = stats.distances(answers_SP, expert_SP, draws=DRAWS)
    assert wasserstein.value == pytest.approx(stats.wasserstein(answers_SP, expert_SP))
    assert wasserstein.method.startswith("two-way t")
    assert wasserstein.low == 0.0
    assert wasserstein.high > wasserstein.value + 4
    other_SP = answers_SP + 3 + rng.normal(0, 2, (3, PROMPTS))
    closer, _ = stats.distance_reduction(answers_SP, other_SP, expert_SP, expert_SP, draws=DRAWS, names=("a",))
    assert (closer.test, closer.value) == ("two-way t", pytest.approx(3.0, abs=0.4))
    assert 0 < closer.smallest_seen(confidence=0.95) < closer.smallest_seen(confidence=0.99)


def test_the_spread_between_seeds_has_a_chi_square_interval():
    found = stats.between_seeds([1.0, 2.0, 3.0, 4.0, 5.0], confidence=0.95)
    # sd of 1..5 is sqrt(2.5); chi-square with 4 df: 0.4844 and 11.1433
    assert (found.value, found.low, found.high) == pytest.approx(
        (math.sqrt(2.5), math.sqrt(10 / 11.1433), math.sqrt(10 / 0.4844)), rel=1e-3
    )
    assert stats.between_seeds([1.0], confidence=0.95) is stats.EMPTY


def test_the_probability_of_improvement_counts_pairs_of_runs_and_half_of_the_ties():
    found = stats.probability_of_improvement([1.0, 2.0], [1.0, 0.0], draws=Resampling(999, 0, 0.95))
    assert found.value == 3.5 / 4
    assert found.low <= found.value <= found.high <= 1.0
    assert math.isnan(stats.probability_of_improvement([2.0], [1.0, 3.0], draws=Resampling(9, 0, 0.95)).value)


def test_holm_multiplies_the_smallest_by_the_number_of_claims():
    # sorted 0.01 x 3, max(0.03, 0.02 x 2), max(0.04, 0.5 x 1); the claim that was not run does not count
    strict = (math.nan, math.nan, math.nan, 0.02)  # it stands for a smaller p of its own
    tests = [
        stats.Estimate(0, 0, 0, 1, "", p=p, strict_p=q)
        for p, q in zip((0.5, 0.01, math.nan, 0.001), strict, strict=True)
    ]
    adjusted = stats.holm(tests, confidence=0.95)
    assert adjusted[:2] == pytest.approx([0.5, 0.03])
    assert math.isnan(adjusted[2])
    assert adjusted[3] == pytest.approx(0.04)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    hits, counts = row(1, 2, 0, 3, 1, 2, 2), row(1, 3, 2, 3, 2, 2, 3)
    first, again = (stats.accuracy(hits, counts, draws=DRAWS, names=("a",)) for _ in range(2))
    other = stats.accuracy(hits, counts, draws=Resampling(499, 4, 0.95), names=("a",))
    assert first == again
    assert (first.low, first.high) != (other.low, other.high)


def test_no_prompts_give_an_empty_estimate():
    nothing = np.zeros((0, 0))
    assert math.isnan(stats.accuracy(nothing, nothing, draws=DRAWS, names=()).value)
    assert math.isnan(stats.paired_difference(nothing, nothing, nothing, draws=DRAWS, names=()).value)
    assert math.isnan(stats.distances(nothing, nothing, draws=DRAWS)[0].value)
