"""The mean of training seeds crossed with prompts: its standard error, degrees of freedom, test and power."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, stats

POWER = 0.8
SEEDS_BOUND = 0.8  # one-sided, of the seeds' mean square in the strict degrees of freedom


@dataclass(frozen=True)
class MeanError:
    """A mean with its error and degrees of freedom; `strict_df`, never more, are for Holm's levels (`two_way`)."""

    mean: float
    error: float
    df: float
    strict_df: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """t interval."""
        half = float(stats.t.ppf(0.5 + confidence / 2, self.df)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided, against 0: below 5% where the 95% interval leaves it out."""
        return self._p(self.df)

    @property
    def strict_p(self) -> float:
        """The same for levels far below 5%."""
        return self._p(self.strict_df)

    def _p(self, df: float) -> float:
        if self.error < 1e-12:
            return 1.0 if abs(self.mean) < 1e-12 else 0.0
        return float(2 * stats.t.sf(abs(self.mean) / self.error, df))

    def power(self, difference: float, *, confidence: float, strict: bool = False) -> float:
        """How often p, or the strict one, finds a true difference: noncentral t, whose standard error is this one."""
        if self.error < 1e-12:
            return 1.0
        beyond = stats.t.ppf(0.5 + confidence / 2, self.strict_df if strict else self.df)
        shift = abs(difference) / self.error
        found = stats.nct.sf(beyond, self.df, [shift, -shift])  # scipy gives NaN where it is 1 or 0 to the last digit
        return float(np.nan_to_num(found[0], nan=1.0) + np.nan_to_num(found[1], nan=0.0))

    def smallest_seen(self, *, confidence: float, power: float = POWER, strict: bool = False) -> float:
        """The smallest true difference that p, or the strict one, finds with that power.

        An error estimated with few degrees of freedom is mostly too small; taken is the one of which it is the median.
        The degrees of freedom are estimated too: of 2 or 3 seeds it is a rough number (docs/statistics.md).
        """
        if self.error < 1e-12:
            return 0.0
        error = self.error * math.sqrt(self.df / float(stats.chi2.ppf(0.5, self.df)))
        design = replace(self, error=error)
        high = 20 * error * max(1.0, float(stats.t.ppf(0.5 + confidence / 2, self.strict_df)))

        def too_much(difference: float) -> float:
            return design.power(difference, confidence=confidence, strict=strict) - power

        return float(optimize.brentq(too_much, 0.0, high))


def two_way(values_SP: np.ndarray) -> MeanError:
    """Mean of seeds crossed with prompts, both random, with Satterthwaite's degrees of freedom.

    Var(mean) = (MS_seed + MS_prompt - MS_error) / (S P), unbiased, but not below half of what prompts and error alone
    give. A small MS_seed by chance makes the degrees of freedom many too: 95% intervals bear it, the far tails that
    Holm's levels ask for do not, so the strict ones are those at MS_seed's upper 80% bound where these are fewer (both
    our choices: docs/statistics.md).
    """
    S, P = values_SP.shape
    assert min(S, P) > 1
    mean = float(values_SP.mean())
    seed_S, prompt_P = values_SP.mean(axis=1), values_SP.mean(axis=0)
    residual_SP = values_SP - seed_S[:, None] - prompt_P[None, :] + mean
    df_seed, df_prompt, df_error = S - 1, P - 1, (S - 1) * (P - 1)
    ms_seed = P * ((seed_S - mean) ** 2).sum() / df_seed
    ms_prompt = S * ((prompt_P - mean) ** 2).sum() / df_prompt
    ms_error = (residual_SP**2).sum() / df_error

    def variance_and_df(ms_seed: float) -> tuple[float, float]:
        total = max(ms_seed + ms_prompt - ms_error, max(ms_prompt, ms_error) / 2)
        spread = ms_seed**2 / df_seed + ms_prompt**2 / df_prompt + ms_error**2 / df_error
        return total, max(1.0, float(total**2 / spread)) if spread > 0 else float(df_error)

    total, df = variance_and_df(ms_seed)
    _, df_at_bound = variance_and_df(ms_seed * df_seed / float(stats.chi2.ppf(1 - SEEDS_BOUND, df_seed)))
    return MeanError(mean, math.sqrt(total / (S * P)), df, min(df, df_at_bound))


def over_prompts(values_P: np.ndarray) -> MeanError | None:
    """Mean of one seed over prompts; None where one prompt tells no error."""
    P = len(values_P)
    if P < 2:
        return None
    return MeanError(float(values_P.mean()), float(values_P.std(ddof=1)) / math.sqrt(P), P - 1, P - 1)
