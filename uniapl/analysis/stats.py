"""Intervals, paired differences and distances between distributions, by scipy and statsmodels.

Scores are `hits_SP` of `counts_SP` for S training seeds and P prompts (a prompt has one hit of one count, or as many
counts as instructions), so that every accuracy is a ratio of sums. One seed: Wilson's interval for binary prompts, BCa
bootstrap over prompts otherwise. Several seeds are crossed with the prompts: two-way random-effects t interval with
Satterthwaite's degrees of freedom, the crossed bootstrap beside it; distances between distributions too, of terms whose
mean they are. With one seed distances resample prompts, because the answers to one prompt are not independent. Every
draw comes from a named seed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from uniapl.analysis.crossed import MeanError, over_prompts, two_way
from uniapl.analysis.sources import Source
from uniapl.seeding import stream_seed

NAN = math.nan
RESAMPLES_AT_ONCE = 1000  # memory only
PLACES = ("value", "low", "high", "bootstrap_low", "bootstrap_high")  # of an estimate, on its axis


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. `n` counts prompts; `p` is two-sided against 0, for differences only.

    `strict_p` is the one that Holm's correction takes, where it is another (`crossed.two_way`).
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    p: float = NAN
    strict_p: float = NAN
    test: str = ""
    bootstrap_low: float = NAN
    bootstrap_high: float = NAN
    source: Source | None = field(default=None, compare=False)
    design: MeanError | None = field(default=None, compare=False)  # of differences

    def smallest_seen(self, *, confidence: float, strict: bool = False) -> float:
        """The smallest true difference that is found with 80% power by a design like this one; NaN where not known.

        Found by p, or by the strict one. Not known of two seeds: they say too little of their own power
        (docs/statistics.md).
        """
        return self.design.smallest_seen(confidence=confidence, strict=strict) if self.design else NAN

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        numbers = {name: getattr(self, name) * factor for name in PLACES}
        design = self.design and replace(self.design, mean=self.design.mean * factor, error=self.design.error * factor)
        return replace(self, **numbers, design=design)

    def shifted(self, by: float) -> Estimate:
        """The same from another origin; a test against the old one does not come along."""
        numbers = {name: getattr(self, name) + by for name in PLACES}
        return replace(self, **numbers, p=NAN, strict_p=NAN, test="", design=None)


@dataclass(frozen=True)
class Resampling:
    """How many draws, from which seed, at which confidence: the study's `claims` section."""

    num_resamples: int
    seed: int
    confidence: float

    def rng(self, *names: str | int) -> np.random.Generator:
        """A generator of its own for one named statistic."""
        return np.random.default_rng(stream_seed(self.seed, *names))


EMPTY = Estimate(NAN, NAN, NAN, 0, "none")


def ratio(hits: np.ndarray, counts: np.ndarray, axis: int = -1) -> np.ndarray:
    """Sum of hits over sum of counts."""
    return hits.sum(axis=axis) / counts.sum(axis=axis)


def wilson(successes: float, n: int, *, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a proportion; a mean over seeds may have a part of a success."""
    low, high = np.asarray(proportion_confint(successes, n, alpha=1 - confidence, method="wilson"))
    return float(low), float(high)


def bca_interval(
    hits_P: np.ndarray, counts_P: np.ndarray, *, draws: Resampling, names: Sequence[str]
) -> tuple[float, float]:
    """BCa bootstrap interval of a ratio over prompts; a point where all prompts agree, percentile where BCa fails."""
    if np.ptp(hits_P) == 0 and np.ptp(counts_P) == 0:
        value = float(ratio(hits_P, counts_P))
        return value, value
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = stats.bootstrap(
                (hits_P, counts_P),
                ratio,
                paired=True,
                vectorized=True,
                n_resamples=draws.num_resamples,
                confidence_level=draws.confidence,
                method=method,
                rng=draws.rng("bootstrap", *names),
            )
        low, high = (float(end) for end in result.confidence_interval)
        if math.isfinite(low) and math.isfinite(high):
            break
    return low, high


def between_seeds(values_S: Sequence[float], *, confidence: float) -> Estimate:
    """Standard deviation between trainings, with the chi-square interval of normal ones; EMPTY of a single one."""
    df = len(values_S) - 1
    if df < 1:
        return EMPTY
    sd, tails = float(np.std(values_S, ddof=1)), _tails(confidence)
    low, high = (sd * math.sqrt(df / float(stats.chi2.ppf(tail, df))) for tail in reversed(tails))
    return Estimate(sd, low, high, len(values_S), "chi-square")


def crossed_bootstrap(values_SP: np.ndarray, *, draws: Resampling) -> tuple[float, float]:
    """Percentile interval of the mean, seeds and prompts resampled independently of each other."""
    S, P = values_SP.shape
    weights = _bootstrap_weights(S, P, draws)
    means = ((weights.prompts_RP @ values_SP.T) * weights.seeds_RS).sum(axis=1) / (S * P)
    low, high = np.quantile(means, _tails(draws.confidence))
    return float(low), float(high)


def accuracy(hits_SP: np.ndarray, counts_SP: np.ndarray, *, draws: Resampling, names: Sequence[str]) -> Estimate:
    """An accuracy with its interval: Wilson (one seed, binary), BCa (one seed), two-way t (several seeds).

    The t interval of a share ends at 0 and 1.
    """
    S, P = hits_SP.shape
    if S == 0 or P == 0:
        return EMPTY
    value = float(ratio(hits_SP.ravel(), counts_SP.ravel()))
    if S > 1:
        found = _several_seeds(value, _linearised(hits_SP, counts_SP, value), draws)
        share = ((hits_SP >= 0) & (hits_SP <= counts_SP)).all()
        return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if share else found
    if (counts_SP == 1).all() and np.isin(hits_SP, (0, 1)).all():
        low, high = wilson(int(hits_SP.sum()), P, confidence=draws.confidence)
        return Estimate(value, low, high, P, "Wilson")
    low, high = bca_interval(hits_SP[0], counts_SP[0], draws=draws, names=names)
    return Estimate(value, low, high, P, "BCa bootstrap over prompts")


def mean(values_SP: np.ndarray, *, draws: Resampling, names: Sequence[str]) -> Estimate:
    """A mean of real numbers, one a prompt and seed, with its interval."""
    return accuracy(values_SP, np.full(values_SP.shape, 1.0), draws=draws, names=names)


def paired_difference(
    hits_SP: np.ndarray, other_SP: np.ndarray, counts_SP: np.ndarray, *, draws: Resampling, names: Sequence[str]
) -> Estimate:
    """Accuracy minus another's on the same prompts (and seeds), with interval and two-sided p.

    p is McNemar's exact test where there is one seed and prompts are binary, a permutation test that exchanges the
    two systems within prompts for instructions, and the two-way t test where there are several seeds.
    """
    S, P = hits_SP.shape
    if S == 0 or P == 0:
        return EMPTY
    difference_SP = hits_SP - other_SP
    value = float(ratio(difference_SP.ravel(), counts_SP.ravel()))
    if S > 1:
        return _several_seeds(value, difference_SP / counts_SP.mean(), draws, test="two-way t")
    binary = (counts_SP == 1).all() and np.isin(hits_SP, (0, 1)).all() and np.isin(other_SP, (0, 1)).all()
    if binary:
        p, test = mcnemar_p(hits_SP[0], other_SP[0]), "McNemar"
    else:
        p, test = sign_flip_p(difference_SP[0], draws=draws, names=names), "permutation"
    low, high = bca_interval(difference_SP[0], counts_SP[0], draws=draws, names=names)
    each_P = difference_SP[0] / counts_SP.mean()
    return Estimate(value, low, high, P, "BCa bootstrap over prompts", p=p, test=test, design=over_prompts(each_P))


def mcnemar_p(hits_P: np.ndarray, other_P: np.ndarray) -> float:
    """McNemar's exact two-sided p for two systems judged on the same prompts."""
    a, b = hits_P.astype(bool), other_P.astype(bool)
    table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
    if table[0][1] + table[1][0] == 0:
        return 1.0
    return float(vars(mcnemar(table, exact=True))["pvalue"])


def sign_flip_p(difference_P: np.ndarray, *, draws: Resampling, names: Sequence[str]) -> float:
    """Paired permutation test that the mean difference is 0 (the two systems exchanged within prompts)."""
    if not difference_P.any():
        return 1.0
    result = stats.permutation_test(
        (difference_P,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        batch=RESAMPLES_AT_ONCE,
        n_resamples=draws.num_resamples,
        rng=draws.rng("permutation", *names),
    )
    return float(result.pvalue)


def holm(tests: Sequence[Estimate], *, confidence: float) -> list[float]:
    """Holm's adjusted p-values of tests, of the strict one where there is one; one without a p does not count."""
    p_values = [one.p if math.isnan(one.strict_p) else one.strict_p for one in tests]
    adjusted = [NAN] * len(p_values)
    known = [i for i, p in enumerate(p_values) if math.isfinite(p)]
    if known:
        corrected = np.asarray(multipletests([p_values[i] for i in known], alpha=1 - confidence, method="holm")[1])
        for i, p in zip(known, corrected, strict=True):
            adjusted[i] = float(p)
    return adjusted


def probability_of_improvement(values_S: Sequence[float], other_S: Sequence[float], *, draws: Resampling) -> Estimate:
    """How often a run of one method beats a run of another, a tie half a win (Agarwal et al., 2108.13264).

    All pairs of runs; the interval resamples each method's runs (percentile). Nothing can be said of single runs.
    """
    if min(len(values_S), len(other_S)) < 2:
        return EMPTY
    a_S, b_S = np.asarray(values_S), np.asarray(other_S)
    won_SS = (a_S[:, None] > b_S + 1e-12) + 0.5 * (np.abs(a_S[:, None] - b_S) <= 1e-12)
    rng = draws.rng("improvement", *map(str, won_SS.shape))
    first, second = (rng.integers(0, size, (draws.num_resamples, size)) for size in won_SS.shape)
    resampled = won_SS[first[:, :, None], second[:, None, :]].mean(axis=(1, 2))
    low, high = np.quantile(resampled, _tails(draws.confidence))
    return Estimate(float(won_SS.mean()), float(low), float(high), won_SS.size, "bootstrap over runs")


@dataclass(frozen=True)
class Gap:
    """Difference of two empirical distribution functions, prompt by prompt, on the grid of all their values.

    `gap_SPG`: 1 where a seed's answer to a prompt is at or below a grid value, minus the same for the expert's answer;
    `step_G`: width of the grid's cells. Any weighting of prompts and seeds gives both distances by matrix products. The
    products are of whole numbers, small enough for float32 to hold them and their sums exactly, at half of the time.
    """

    gap_SPG: np.ndarray
    step_G: np.ndarray

    def distances(self, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
        """Wasserstein-1 (area between the two functions) and Kolmogorov-Smirnov (largest gap), one a resample."""
        assert math.prod(self.gap_SPG.shape[:2]) < 2**24, "float32 would round sums of so many answers"
        areas, largest = [], []
        for rows in _blocks(len(weights.prompts_RP)):
            prompts_RP, seeds_RS = (w[rows].astype(np.float32) for w in (weights.prompts_RP, weights.seeds_RS))
            total_RG = np.zeros((len(prompts_RP), len(self.step_G)), np.float32)
            for s, gap_PG in enumerate(self.gap_SPG):
                total_RG += (seeds_RS[:, [s]] * prompts_RP) @ gap_PG
            counted_R = (seeds_RS.sum(axis=1) * prompts_RP.sum(axis=1)).astype(float)
            heights_RG = np.abs(total_RG, out=total_RG).astype(float)
            areas.append(heights_RG @ self.step_G / counted_R)
            largest.append(heights_RG.max(axis=1) / counted_R)
        return np.concatenate(areas), np.concatenate(largest)

    def linearised(self) -> tuple[np.ndarray, np.ndarray]:
        """Terms [S, P] whose means are the two distances: the gap's sign, or its widest place, taken as known.

        With them seeds and prompts are crossed as in any mean; exact but for how sign and place themselves vary.
        """
        mean_G = self.gap_SPG.mean(axis=(0, 1), dtype=float)
        widest = int(np.abs(mean_G).argmax())
        return self.gap_SPG @ (np.sign(mean_G) * self.step_G), self.gap_SPG[:, :, widest] * np.sign(mean_G[widest])


@dataclass(frozen=True)
class Weights:
    """How often each of P prompts and each of S seeds counts in each of R resamples."""

    prompts_RP: np.ndarray
    seeds_RS: np.ndarray


def gap(values_SP: np.ndarray, expert_SP: np.ndarray, grid: np.ndarray | None = None) -> Gap:
    """Compare S answers a prompt with the expert's on the same prompts (expert_SP may be one row, for all seeds)."""
    grid = np.unique(np.concatenate([values_SP.ravel(), expert_SP.ravel()])) if grid is None else grid
    below_SPG = (values_SP[:, :, None] <= grid).astype(np.float32) - (expert_SP[:, :, None] <= grid)
    return Gap(below_SPG, np.append(np.diff(grid), 0.0))


def wasserstein(values_SP: np.ndarray, expert_SP: np.ndarray) -> float:
    """Wasserstein-1 distance to the expert's distribution, all prompts and seeds once; NaN where there are none."""
    if not values_SP.size:
        return NAN
    return float(gap(values_SP, expert_SP).distances(_all_once(*values_SP.shape))[0][0])


def distances(values_SP: np.ndarray, expert_SP: np.ndarray, *, draws: Resampling) -> tuple[Estimate, Estimate]:
    """Wasserstein-1 and Kolmogorov-Smirnov distance to the expert's distribution.

    One seed: bootstrap over prompts. Several seeds: two-way t interval of the linearised distance (`Gap.linearised`),
    the bootstrap over seeds and prompts beside it.
    """
    S, P = values_SP.shape
    if values_SP.size == 0:
        return EMPTY, EMPTY
    compared = gap(values_SP, expert_SP)
    resampled = compared.distances(_bootstrap_weights(S, P, draws))
    estimates = []
    for linear_SP, resampled_R in zip(compared.linearised(), resampled, strict=True):
        value = float(linear_SP.mean())
        low, high = _envelope(value, resampled_R, draws.confidence, floor=0.0)
        if S > 1 and P > 1:
            crossed = _several_seeds(value, linear_SP, draws, bootstrap=(low, high))
            found = replace(crossed, low=max(0.0, crossed.low))
        else:
            found = Estimate(value, low, high, P, "bootstrap over prompts")
        estimates.append(found)
    return estimates[0], estimates[1]


def distance_reduction(
    values_SP: np.ndarray,
    other_SP: np.ndarray,
    expert_SP: np.ndarray,
    other_expert_SP: np.ndarray,
    *,
    draws: Resampling,
    names: Sequence[str],
) -> tuple[Estimate, Estimate]:
    """How much closer to the expert a method is than another: distance(other) - distance(method), paired by prompt.

    Wasserstein-1, then Kolmogorov-Smirnov. One seed: bootstrap over prompts, two-sided p from exchanging the two
    methods within prompts. Several seeds: two-way t interval and test of the linearised reduction, the bootstrap over
    seeds and prompts beside it. The expert's values are given twice because a log-prob under the trained model differs
    between methods.
    """
    S, P = values_SP.shape
    if values_SP.size == 0:
        return EMPTY, EMPTY
    grid = np.unique(np.concatenate([a.ravel() for a in (values_SP, other_SP, expert_SP, other_expert_SP)]))
    method, other = gap(values_SP, expert_SP, grid), gap(other_SP, other_expert_SP, grid)
    weights = _bootstrap_weights(S, P, draws)
    nulls = _exchanged(method, other, draws=draws, names=names) if S == 1 else (None, None)
    found = []
    for ours_SP, theirs_SP, ours_R, theirs_R, null_R in zip(
        method.linearised(), other.linearised(), method.distances(weights), other.distances(weights), nulls, strict=True
    ):
        value = float((theirs_SP - ours_SP).mean())
        low, high = _envelope(value, theirs_R - ours_R, draws.confidence, floor=-math.inf)
        if null_R is None:
            terms_SP = theirs_SP - ours_SP
            found.append(_several_seeds(value, terms_SP, draws, test="two-way t", bootstrap=(low, high)))
            continue
        p = float(((np.abs(null_R) >= abs(value) - 1e-9).sum() + 1) / (len(null_R) + 1))
        design = over_prompts((theirs_SP - ours_SP)[0])
        found.append(Estimate(value, low, high, P, "bootstrap over prompts", p=p, test="permutation", design=design))
    return found[0], found[1]


def _exchanged(method: Gap, other: Gap, *, draws: Resampling, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both reductions of one seed in every draw that exchanges the two methods within prompts."""
    method_PG, other_PG = method.gap_SPG[0], other.gap_SPG[0]
    kept_RP = draws.rng("exchange", *names).integers(0, 2, (draws.num_resamples, len(method_PG)))
    areas, largest = [], []
    for rows in _blocks(len(kept_RP)):
        kept = kept_RP[rows].astype(np.float32)
        moved = 1 - kept
        as_other = np.abs(kept @ other_PG + moved @ method_PG).astype(float) / len(method_PG)
        as_method = np.abs(kept @ method_PG + moved @ other_PG).astype(float) / len(method_PG)
        areas.append(as_other @ other.step_G - as_method @ method.step_G)
        largest.append(as_other.max(axis=1) - as_method.max(axis=1))
    return np.concatenate(areas), np.concatenate(largest)


def _several_seeds(
    value: float, values_SP: np.ndarray, draws: Resampling, *, test: str = "",
    bootstrap: tuple[float, float] | None = None,
) -> Estimate:  # fmt: skip
    """The two-way t interval, beside it the crossed bootstrap's, or `bootstrap` where that of another statistic is."""
    S, P = values_SP.shape
    if P < 2:
        return Estimate(value, NAN, NAN, P, "none")
    crossed = two_way(values_SP)
    low, high = crossed.interval(draws.confidence)
    bootstrap_low, bootstrap_high = bootstrap or crossed_bootstrap(values_SP, draws=draws)
    return Estimate(
        value, low, high, P, f"two-way t ({S} seeds x prompts)", p=crossed.p if test else NAN,
        strict_p=crossed.strict_p if test else NAN, test=test,
        bootstrap_low=bootstrap_low, bootstrap_high=bootstrap_high, design=crossed if test and S > 2 else None,
    )  # fmt: skip


def _linearised(hits_SP: np.ndarray, counts_SP: np.ndarray, value: float) -> np.ndarray:
    """Per-prompt terms whose mean is the ratio of sums; the hits themselves where every count is 1."""
    return (hits_SP - value * counts_SP) / counts_SP.mean() + value


@lru_cache(maxsize=8)
def _bootstrap_weights(S: int, P: int, draws: Resampling) -> Weights:
    """Prompts and seeds drawn with replacement, independently; the same draws for every method."""
    rng = draws.rng("prompts", P, "seeds", S)
    prompts_RP = rng.multinomial(P, np.full(P, 1 / P), size=draws.num_resamples).astype(float)
    seeds_RS = rng.multinomial(S, np.full(S, 1 / S), size=draws.num_resamples).astype(float)
    return Weights(prompts_RP, seeds_RS)


def _all_once(S: int, P: int) -> Weights:
    return Weights(np.ones((1, P)), np.ones((1, S)))


def _blocks(num_rows: int) -> list[slice]:
    return [slice(start, start + RESAMPLES_AT_ONCE) for start in range(0, num_rows, RESAMPLES_AT_ONCE)]


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _envelope(value: float, resampled: np.ndarray, confidence: float, *, floor: float) -> tuple[float, float]:
    """The wider of percentile and basic bootstrap at each end.

    Resampling pulls two nearly equal distributions apart, so that the percentile interval alone misses small
    distances from above; the basic one misses large ones from below.
    """
    low, high = np.quantile(resampled, _tails(confidence))
    return max(floor, float(min(low, 2 * value - high))), float(max(high, 2 * value - low))
