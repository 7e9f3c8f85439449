"""Aggregates over proxies: what each algorithm does to a gold, whatever it was trained on.

After Agarwal et al. (2021, "Deep RL at the edge of the statistical precipice"): interquartile means, probabilities of
improvement and performance profiles, each with a bootstrap stratified by proxy. Changes of a gold are in standard
deviations of its scores over the base model's images, so those on different proxies can stand in one mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import trim_mean

from overopt_bench.report import readings
from overopt_bench.report.cells import Cell
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Array, Estimate, paired_by_seed
from overopt_bench.report.tables import gold_name

RESAMPLES = 2_000
LIMITS = (2.5, 97.5)  # percentiles of the resamples
Strata = Sequence[NDArray[Any]]  # of each proxy, the values of its runs


@dataclass(frozen=True)
class Moves:
    """What the seeds of an algorithm on a proxy did to a gold, in deviations of the base model's images.

    Attributes:
        runs: one of each seed.
        gold: which.
        split: on whose images.
        spread: deviation of the gold over the base model's images ``[runs]``.
        change: of the gold from start to end ``[runs]``.
    """

    runs: list[Run]
    gold: str
    split: str
    spread: Array
    change: Array

    @property
    def seeds(self) -> list[int]:
        """The seed of each run."""
        return [int(run.config["seed"]) for run in self.runs]

    @property
    def fall(self) -> Array:
        """Fall of the gold from its cross-fitted peak to the end ``[runs]``; a figure of changes needs no peaks."""
        falls = [readings.fall(run, self.split, self.gold) for run in self.runs]
        return np.array(falls, float) / self.spread


def resampled(strata: Strata) -> list[NDArray[Any]]:
    """Draw runs with replacement within each proxy: ``[2000, runs]`` for each, always the same ones."""
    generator = np.random.default_rng(0)
    return [generator.choice(values, (RESAMPLES, len(values))) for values in strata]


def interquartile_mean(strata: Strata) -> Estimate:
    """Mean of the middle half of all runs, with its bootstrap interval.

    With n runs a proxy the interval is too narrow by about sqrt(1 - 1/n), as that of every bootstrap of means: of three
    seeds on each of five proxies it holds the truth nine times in ten instead of nineteen in twenty.
    """
    runs = np.concatenate(strata)
    if not np.isfinite(runs).all():  # it would be trimmed away as if it were the best
        return Estimate(float("nan"), None, None, len(runs))
    drawn = np.asarray(trim_mean(np.concatenate(resampled(strata), 1), 0.25, axis=1))
    return _estimate(float(trim_mean(runs, 0.25)), drawn, strata)


def improvement(strata: Strata) -> Estimate:
    """Probability that a run is above its pair, ties half, from each proxy's paired differences; proxies weigh alike."""
    wins = [np.heaviside(differences, 0.5) for differences in strata]
    drawn = np.mean([values.mean(1) for values in resampled(wins)], 0)
    return _estimate(float(np.mean([values.mean() for values in wins])), drawn, strata)


def profile(strata: Strata, taus: Array) -> tuple[Array, Array, Array]:
    """Share of all runs above each tau ``[taus]``, with the limits of its bootstrap interval; no number is above none."""
    runs = np.concatenate(strata)
    runs = np.where(np.isnan(runs), -np.inf, runs)
    values, places = np.unique(runs, return_inverse=True)  # between two of the values no share changes
    drawn = np.concatenate(resampled(np.split(places, np.cumsum([len(own) for own in strata])[:-1])), 1)
    cells = np.arange(RESAMPLES)[:, None] * len(values) + drawn
    counts = np.bincount(cells.ravel(), minlength=RESAMPLES * len(values)).reshape(RESAMPLES, -1)
    above = np.pad(counts[:, ::-1].cumsum(1)[:, ::-1], ((0, 0), (0, 1))) / len(
        runs
    )  # at each value or above, then none
    low, high = np.percentile(above, LIMITS, axis=0)
    first = np.searchsorted(values, taus, side="right")  # of the values, the first above each tau
    return np.mean(runs[:, None] > taus, 0), low[first], high[first]


def _estimate(value: float, drawn: Array, strata: Strata) -> Estimate:
    """With an interval where resamples differ: a single seed on a proxy, or pairs that all agree, say nothing of others."""
    low, high = map(float, np.percentile(drawn, LIMITS))
    known = repeated(strata) and low < high
    return Estimate(value, low if known else None, high if known else None, sum(map(len, strata)))


def repeated(strata: Strata) -> bool:
    """Whether every proxy has two runs or more, without which a bootstrap takes the seeds for all alike."""
    return all(len(values) > 1 for values in strata)


def moves(group: Group, gold: str, split: str = "train") -> dict[str, dict[str, Moves]]:
    """Find what every trained algorithm did to a gold: by label and proxy.

    All labels stand on the same proxies, those that every one of them has; labels that have less than half of the
    group's proxies are left out.

    Returns:
        The moves; empty where fewer than two proxies would remain, since there is nothing to aggregate then.
    """
    found: dict[str, dict[str, Moves]] = {}
    for label in group.trained():
        cells = {proxy: _moves(group.of(proxy, label), gold, split) for proxy in group.proxies() if proxy != gold}
        found[label] = {proxy: cell for proxy, cell in cells.items() if cell.seeds}
    half = len({proxy for cells in found.values() for proxy in cells}) / 2
    kept = {label: cells for label, cells in found.items() if cells and len(cells) >= half}
    common = [proxy for proxy in group.proxies() if kept and all(proxy in cells for cells in kept.values())]
    return {label: {p: cells[p] for p in common} for label, cells in kept.items()} if len(common) > 1 else {}


def _moves(runs: Sequence[Run], gold: str, split: str) -> Moves:
    known = [
        (run, scores, spread) for run in runs
        if (scores := run.scores(split, gold)) is not None and (spread := scores[0].std()) > 0
    ]  # fmt: skip
    spreads = np.array([spread for *_, spread in known])
    change = np.array([(scores[-1].mean() - scores[0].mean()) / spread for _, scores, spread in known])
    return Moves([run for run, *_ in known], gold, split, spreads, change)


def where(group: Group) -> str:
    """Say on which proxies the labels are compared, gold by gold, and which labels are left out."""
    texts = []
    for gold in group.golds():
        if found := moves(group, gold):
            missing = [label for label in group.trained() if label not in found]
            text = f"{gold} over the proxies {', '.join(next(iter(found.values())))}"
            texts.append(
                text + (f" (left out, on fewer than half of the proxies: {', '.join(missing)})" if missing else "")
            )
    return "; ".join(texts)


def aggregates_table(group: Group) -> pd.DataFrame:
    """Tabulate interquartile means over (proxy, seed) and the probability of improvement over the first trained label."""
    rows: list[dict[str, Cell]] = []
    for gold in group.golds():
        found = moves(group, gold)
        for label, cells in found.items():
            reference, base = next(iter(found.items()))
            pairs = [
                difference for proxy, here in cells.items()
                if len(difference := paired_by_seed(here.seeds, here.change, base[proxy].seeds, base[proxy].change))
            ]  # fmt: skip
            compared = label != reference and pairs
            rows.append({
                "gold": gold_name(group, gold), "algorithm": label, "proxies": len(cells),
                "runs": sum(len(cell.seeds) for cell in cells.values()),
                "IQM of change": interquartile_mean([cell.change for cell in cells.values()]),
                "IQM of fall from peak": interquartile_mean([cell.fall for cell in cells.values()]),
                "P(improvement)": improvement(pairs) if compared else None, "over": reference if compared else "",
                "pairs": sum(map(len, pairs)) if compared else 0,
            })  # fmt: skip
    return pd.DataFrame(rows)
