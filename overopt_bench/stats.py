"""Statistics of comparisons: pure functions on arrays, random numbers injected, nothing drawn.

Aggregates follow Agarwal et al. (2021, "Deep RL at the edge of the statistical precipice"); the scaling forms
Gao et al. (2022, arXiv 2210.10760).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval (None where there is none) over ``count`` units."""

    value: float
    low: float | None
    high: float | None
    count: int


def interquartile_mean(values: Array) -> float:
    """Mean of the middle half; the plain mean of fewer than four values."""
    return float(stats.trim_mean(values, 0.25))


def bootstrap(
    groups: Sequence[Array], statistic: Callable[[Sequence[Array]], float], rng: np.random.Generator
) -> Estimate:
    """Percentile interval of a statistic of several groups of seeds, each resampled on its own (stratified).

    No interval is given where a group has fewer than two seeds.
    """
    value, count = statistic(groups), min(len(g) for g in groups)
    if count < 2:
        return Estimate(value, None, None, count)
    draws = [statistic([rng.choice(g, len(g)) for g in groups]) for _ in range(RESAMPLES)]
    low, high = np.percentile(draws, [2.5, 97.5])
    return Estimate(value, float(low), float(high), count)


def over_seeds(values: Array, rng: np.random.Generator) -> Estimate:
    """Interquartile mean over seeds with its bootstrap interval."""
    return bootstrap([values], lambda g: interquartile_mean(g[0]), rng)


def difference(a: Array, b: Array, rng: np.random.Generator) -> Estimate:
    """Difference of the interquartile means of two algorithms' seeds, a minus b."""
    return bootstrap([a, b], lambda g: interquartile_mean(g[0]) - interquartile_mean(g[1]), rng)


def probability_of_improvement(a: Array, b: Array) -> float:
    """P(a run of a beats a run of b), ties half: the Mann-Whitney statistic over all pairs."""
    return float(np.mean((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])))


def paired_difference(after: Array, before: Array) -> tuple[float, float]:
    """Mean and standard error of after - before, image by image (same prompts and noise); each ``[images]``."""
    delta = np.asarray(after) - np.asarray(before)
    return float(delta.mean()), float(delta.std(ddof=1) / np.sqrt(len(delta))) if len(delta) > 1 else float("nan")


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest and how high, each located on one half of the images and read on the other.

    ``points`` are the two locations; ``value``, ``rise`` (peak - start) and ``drop`` (peak - end) average the two
    readings, with standard errors of the paired differences.
    """

    points: tuple[int, int]
    value: float
    rise: float
    rise_error: float
    drop: float
    drop_error: float


def cross_fitted_peak(scores: Array) -> Peak:
    """The peak of mean scores ``[points, images]`` without calling the maximum of noise a peak.

    Even images locate and odd ones read, then the reverse, so no image is read where it helped to choose.
    """
    halves = [np.arange(scores.shape[1]) % 2 == k for k in (0, 1)]
    rises, drops, values = np.empty(scores.shape[1]), np.empty(scores.shape[1]), np.empty(scores.shape[1])
    points = []
    for locate, read in (halves, halves[::-1]):
        top = int(scores[:, locate].mean(1).argmax())
        points.append(top)
        values[read] = scores[top, read]
        rises[read] = scores[top, read] - scores[0, read]
        drops[read] = scores[top, read] - scores[-1, read]
    zero = np.zeros_like(rises)
    rise, drop = paired_difference(rises, zero), paired_difference(drops, zero)
    return Peak((points[0], points[1]), float(values.mean()), *rise, *drop)


def at_matched(x: Array, y: Array, target: float) -> float | None:
    """y where the curve (x, y) first reaches x = target, by linear interpolation; None where it never does."""
    for k in range(len(x)):
        if x[k] >= target:
            if k == 0:
                return float(y[0])
            share = (target - x[k - 1]) / (x[k] - x[k - 1])
            return float(y[k - 1] + share * (y[k] - y[k - 1]))
    return None


def fit_best_of_n(d: Array, gold: Array) -> tuple[float, float]:
    """(alpha, beta) of R(d) = d (alpha - beta d) by least squares; gold relative to the base, d = sqrt(KL) > 0."""
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d**2], 1), gold, rcond=None)
    return float(alpha), float(-minus_beta)


def fit_rl(d: Array, gold: Array) -> tuple[float, float]:
    """(alpha, beta) of R(d) = d (alpha - beta log d) by least squares; the form does not hold near d = 0."""
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * np.log(d)], 1), gold, rcond=None)
    return float(alpha), float(-minus_beta)
