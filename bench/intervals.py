"""How often intervals and verdicts are right: `python -m bench.intervals [--output FILE]`, 10 minutes on a core.

Studies of 200 held-out prompts are simulated with 2, 3 and 5 training seeds, apart by 0 to 7 points, whose true
difference is known: none, the margin of `equal`, and twice that. Each goes through the functions that make the tables
(`uniapl.analysis`). Counted are intervals that hold the truth, differences found, studies called equal, and families of
tests with a false finding after Holm's correction; and how often the difference is found that a study calls found with
80% power. It prints the tables of docs/statistics.md; FILE is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy is loaded: its products are too small for several
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from scipy import optimize
from scipy import stats as distributions

from uniapl.analysis import crossed, stats
from uniapl.analysis.ablations import EQUAL, against_margin
from uniapl.analysis.stats import Estimate, Resampling
from uniapl.entry import run_guarded
from uniapl.provenance import write_whole
from uniapl.seeding import stream_seed

PROMPTS = 200  # of the laptop's held-out split
SEEDS = (2, 3, 5)
SEED_SDS = (0.0, 1.0, 2.4, 5.0, 7.1)  # points, of a difference of two methods: 7.1 where each has 5
MARGIN = 5.0  # points: claims.equivalence_points
DIFFERENCES = (0.0, MARGIN, 2 * MARGIN)
FAMILIES = (5, 15, 91)  # tests: of one column of Table 12, of all of it, of Table 13's pairs of 14 methods
MAIN_FAMILY = 15  # of which there are as many as studies
CONFIDENCE = 0.95
STRICTEST = 1 - (1 - CONFIDENCE) / MAIN_FAMILY  # the first of Holm's levels among 15 tests
STUDIES = 4000
RESAMPLES = 999
SETTINGS = {
    "prompts": PROMPTS, "confidence": CONFIDENCE, "strictest": STRICTEST, "margin": MARGIN, "resamples": RESAMPLES,
}  # fmt: skip
AT_ONCE = 500  # memory only
OWN_SD = 0.05  # of a method's chance to solve a prompt


def simulated(
    rng: np.random.Generator, *, studies: int, seeds: int, seed_sd: float, gain: float = 0.0
) -> Iterator[np.ndarray]:
    """Paired differences of two methods' verdicts, S seeds x P prompts, of one study after the other.

    A prompt has a chance to be solved, spread over prompts (a logistic normal whose mean is near 0.25, as measured);
    two methods' chances go together, `gain` apart before they are cut at 0 and 1. Each training moves all chances of
    its method together, by so much that differences are apart by `seed_sd` points.
    """
    for start in range(0, studies, AT_ONCE):
        N = min(AT_ONCE, studies - start)
        chance_N1P = 1 / (1 + np.exp(-rng.normal(-1.5, 1.5, (N, 1, PROMPTS))))
        verdicts = []
        for half in (gain / 2, -gain / 2):
            moved_NS1 = rng.normal(0, seed_sd / 100 / math.sqrt(2), (N, seeds, 1))
            own_N1P = rng.normal(0, OWN_SD, (N, 1, PROMPTS))
            chance_NSP = np.clip(chance_N1P + own_N1P + half + moved_NS1, 0, 1)
            verdicts.append(rng.random((N, seeds, PROMPTS)) < chance_NSP)
        yield from verdicts[0].astype(float) - verdicts[1].astype(float)


def true_difference(gain: float, *, seed_sd: float) -> float:
    """The mean difference of that simulation, cut chances included, by sums over quantiles."""
    quantiles_Q = distributions.norm.ppf((np.arange(400) + 0.5) / 400)
    chance_Q1 = 1 / (1 + np.exp(-(-1.5 + 1.5 * quantiles_Q)))[:, None]
    moved_Q = math.hypot(OWN_SD, seed_sd / 100 / math.sqrt(2)) * quantiles_Q
    above, below = (np.clip(chance_Q1 + moved_Q + half, 0, 1).mean() for half in (gain / 2, -gain / 2))
    return float(above - below)


def gain_of(difference: float, *, seed_sd: float) -> float:
    """The gain with which the simulation has a true difference."""
    if not difference:
        return 0.0
    return float(optimize.brentq(lambda gain: true_difference(gain, seed_sd=seed_sd) - difference, 0.0, 2 * difference))


def measure(*, seeds: int, seed_sd: float, difference: float, studies: int) -> dict[str, Any]:
    """Shares of studies of one kind; where there is no difference also of families of tests, and of the bootstrap."""
    rng = np.random.default_rng(stream_seed(0, "intervals", seeds, int(10 * seed_sd), int(10 * difference)))
    truth, margin, draws = difference / 100, MARGIN / 100, Resampling(RESAMPLES, 0, CONFIDENCE)
    gain = gain_of(truth, seed_sd=seed_sd)
    wanted = studies * (1 if difference else MAIN_FAMILY)
    counted, p_N = {"covers": 0, "found": 0, "equal": 0, "bootstrap_covers": 0}, []
    of_kind = simulated(rng, studies=wanted, seeds=seeds, seed_sd=seed_sd, gain=gain)
    for number, values_SP in enumerate(of_kind):
        mean = crossed.two_way(values_SP)
        if not difference:
            p_N.append(mean.strict_p)
        if number >= studies:  # simulated for the families alone
            continue
        low, high = mean.interval(CONFIDENCE)
        found = not low <= 0 <= high
        word = against_margin(Estimate(mean.mean, low, high, PROMPTS, ""), margin, significant=found)
        counted["covers"] += low <= truth <= high
        counted["found"] += found
        counted["equal"] += word == EQUAL
        if not difference:
            low, high = stats.crossed_bootstrap(values_SP, draws=draws)
            counted["bootstrap_covers"] += low <= 0 <= high
    row: dict[str, Any] = {"seeds": seeds, "seed_sd": seed_sd, "difference": difference}
    row |= {name: share(count, studies) for name, count in counted.items() if p_N or name != "bootstrap_covers"}
    return row | {f"family_{size}": share(*false_families(p_N, size=size)) for size in FAMILIES if p_N}


def power_as_told(
    rng: np.random.Generator,
    *,
    seeds: int,
    seed_sd: float,
    confidence: float,
    studies: int,
    tried: int,
    strict: bool = False,
) -> dict[str, Any]:
    """What so many studies call found with 80% power, in points, and how often the median of it is found by `tried`.

    Found is a p below 1 - confidence: that of the interval, or the strict one.
    """
    kind = {"seeds": seeds, "seed_sd": seed_sd}
    designs = [crossed.two_way(values_SP) for values_SP in simulated(rng, studies=studies, **kind)]
    told_N = [one.smallest_seen(confidence=confidence, strict=strict) for one in designs]
    low, told, high = np.quantile(told_N, (0.1, 0.5, 0.9))
    gain = gain_of(float(told), seed_sd=seed_sd)
    others = [crossed.two_way(values_SP) for values_SP in simulated(rng, studies=tried, gain=gain, **kind)]
    found = share(sum((one.strict_p if strict else one.p) < 1 - confidence for one in others), tried)
    return kind | {
        "strict": strict,
        "told": 100 * float(told),
        "low": 100 * float(low),
        "high": 100 * float(high),
        "found": found,
    }


def powers(studies: int) -> list[dict[str, Any]]:
    """What is told and found by single tests, and by five seeds at the strictest of Holm's levels among 15 tests."""
    single, strictest = {"confidence": CONFIDENCE}, {"confidence": STRICTEST, "strict": True}
    kinds = [(seeds, sd, single) for seeds in SEEDS for sd in SEED_SDS] + [(5, sd, strictest) for sd in SEED_SDS]
    return [
        power_as_told(
            np.random.default_rng(stream_seed(0, "power", seeds, int(10 * sd))),
            seeds=seeds, seed_sd=sd, **level, studies=studies, tried=studies,
        )
        for seeds, sd, level in kinds
    ]  # fmt: skip


def false_families(p_values: Sequence[float], *, size: int) -> tuple[int, int]:
    """Of how many families of so many tests, all without a difference, Holm finds one; and how many there are.

    Holm finds none where it does not find the smallest p, which it multiplies by the number of tests.
    """
    families = [p_values[start : start + size] for start in range(0, len(p_values) - size + 1, size)]
    return sum(size * min(p_F) < 1 - CONFIDENCE for p_F in families), len(families)


def share(count: int, of: int) -> dict[str, float]:
    """A share with its standard error of the simulation; that of one case where none or all were counted."""
    value = count / of
    likely = min(max(value, 1 / of), 1 - 1 / of)
    return {"share": value, "error": math.sqrt(likely * (1 - likely) / of), "of": of}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The markdown table of docs/statistics.md: a line for each number of seeds and spread between them, in percent."""
    header = (
        "seeds", "apart by, points", "t interval holds 0", f"holds {MARGIN:g}", f"holds {2 * MARGIN:g}",
        "bootstrap holds 0", *(f"false finding in {size} tests" for size in FAMILIES), "none called equal",
        f"{MARGIN:g} called equal", f"{MARGIN:g} found", f"{2 * MARGIN:g} found",
    )  # fmt: skip
    lines = []
    for seeds, seed_sd in dict.fromkeys((row["seeds"], row["seed_sd"]) for row in rows):
        none, margin, twice = (row for row in rows if (row["seeds"], row["seed_sd"]) == (seeds, seed_sd))
        shares = [
            none["covers"], margin["covers"], twice["covers"], none["bootstrap_covers"],
            *(none[f"family_{size}"] for size in FAMILIES), none["equal"], margin["equal"], margin["found"],
            twice["found"],
        ]  # fmt: skip
        lines.append((str(seeds), f"{seed_sd:g}", *(f"{100 * one['share']:.1f}" for one in shares)))
    return _markdown(header, lines)


def power_table(rows: Sequence[dict[str, Any]]) -> str:
    """The second table of docs/statistics.md: what is told, and in percent how often it is found."""
    header = (
        "seeds", "apart by, points", "of tests", "told by the median study, points", "by the middle 80% of studies",
        "found, %",
    )  # fmt: skip
    lines = []
    for row in rows:
        between = f"{row['low']:.1f} to {row['high']:.1f}"
        found = f"{100 * row['found']['share']:.1f}"
        tests = str(MAIN_FAMILY if row["strict"] else 1)
        lines.append((str(row["seeds"]), f"{row['seed_sd']:g}", tests, f"{row['told']:.1f}", between, found))
    return _markdown(header, lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ("---:",) * len(header), *lines))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description="Count how often intervals and verdicts of simulated studies are right."
    )
    parser.add_argument("--studies", type=int, default=STUDIES, help="of each kind")
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    options = parser.parse_args()

    def action() -> None:
        kinds = [(seeds, sd, difference) for seeds in SEEDS for sd in SEED_SDS for difference in DIFFERENCES]
        rows = [
            measure(seeds=seeds, seed_sd=sd, difference=difference, studies=options.studies)
            for seeds, sd, difference in kinds
        ]
        power = powers(options.studies)
        print(f"{table(rows)}\n{power_table(power)}", end="")
        if options.output:
            write_whole(options.output, json.dumps(SETTINGS | {"rows": rows, "power": power}, indent=1) + "\n")

    run_guarded(action)


if __name__ == "__main__":
    main()
