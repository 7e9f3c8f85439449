"""Numbers that are read off one run, and what they are over the seeds of a label.

Each is None where the run did not record what it takes; over seeds, numbers that are not finite are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from overopt_bench.report.load import Run
from overopt_bench.report.peaks import read_at
from overopt_bench.report.statistics import Estimate, at_matched, over_seeds

Reading = Callable[[Run], float | None]


def by_seed(runs: Iterable[Run], reading: Reading) -> dict[int, float]:
    """Read each run: its number by its seed, without those that have none."""
    found = ((int(run.config["seed"]), reading(run)) for run in runs)
    return {seed: value for seed, value in found if value is not None and np.isfinite(value)}


def estimate(runs: list[Run], reading: Reading) -> Estimate | None:
    """Mean over seeds with its interval; None where no seed has the number.

    What does not train is one deterministic evaluation whatever the seed, so it has no interval.
    """
    values = np.array([*by_seed(runs, reading).values()])
    if not len(values):
        return None
    if runs[0].role == "stays":
        return Estimate(float(values.mean()), None, None, len(values))
    return over_seeds(values)


def start(run: Run, key: str) -> float | None:
    """A metric at the first evaluation."""
    values = run.curve(key)[1]
    return float(values[0]) if len(values) else None


def end(run: Run, key: str) -> float | None:
    """A metric at the last evaluation that recorded it."""
    values = run.curve(key)[1]
    return float(values[-1]) if len(values) else None


def change(run: Run, key: str) -> float | None:
    """A metric's end minus its start."""
    first, last = start(run, key), end(run, key)
    return None if first is None or last is None else last - first


def peak_value(run: Run, split: str, gold: str) -> float | None:
    """Height of the cross-fitted peak; it is read on other images than it is located on, so it can lie below the end."""
    peak = run.peak(split, gold)
    return None if peak is None else peak.value


def fall(run: Run, split: str, gold: str) -> float | None:
    """By how much a gold fell from its cross-fitted peak to the end."""
    peak = run.peak(split, gold)
    return None if peak is None else peak.drop.mean


def peak_queries(run: Run, split: str, gold: str) -> float | None:
    """Queries spent at the cross-fitted peak: the mean of its two locations."""
    peak = run.peak(split, gold)
    if peak is None:
        return None
    spent = [point.queries for point in run.points[split] if gold in point.rewards]
    return float(np.mean([spent[k] for k in peak.points]))


def proxy_at_peak(run: Run, split: str, gold: str) -> float | None:
    """What the proxy said of the images where the gold's cross-fitted peak is, half by half as the gold is read."""
    peak, gold_scores, scores = run.peak(split, gold), run.scores(split, gold), run.scores(split, run.proxy)
    if peak is None or gold_scores is None or scores is None or len(scores) != len(gold_scores):
        return None
    return read_at(peak.points, scores, run.prompts(split))


def proxy_gain(run: Run, split: str) -> float | None:
    """By how much the mean proxy rose from the first evaluation to the last."""
    first, last = start(run, f"{split}/{run.proxy}/mean"), run.last(f"{split}/{run.proxy}/mean")
    return None if first is None or last is None else last - first


def gold_at_proxy_gain(run: Run, split: str, gold: str, gain: float) -> float | None:
    """The gold where the mean proxy first is so far above its start."""
    x, y = run.together(f"{split}/{run.proxy}/mean", f"{split}/{gold}/mean")
    return at_matched(x - x[0], y, gain) if len(x) else None


def gold_at_path_kl(run: Run, split: str, gold: str, kl: float) -> float | None:
    """The gold where the path KL of the same split first reaches so many nats."""
    x, y = run.together(f"{split}/path_kl/mean", f"{split}/{gold}/mean")
    return at_matched(x, y, kl)


def smallest(runs: Iterable[Run], reading: Reading) -> float | None:
    """The smallest of the runs' numbers, which all of them reached; None where any has none, or it is not above zero."""
    values = [reading(run) for run in runs]
    known = [value for value in values if value is not None and np.isfinite(value)]
    return min(known) if known and len(known) == len(values) and min(known) > 0 else None
