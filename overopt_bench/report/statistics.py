"""Statistics of comparisons: pure functions on arrays, nothing drawn.

The probability of improvement follows Agarwal et al. (2021, "Deep RL at the edge of the statistical precipice"),
the scaling forms Gao et al. (2022, arXiv 2210.10760).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval (None where there is none) over ``count`` units."""

    value: float
    low: float | None
    high: float | None
    count: int


def over_seeds(values: Array) -> Estimate:
    """Mean over seeds ``[seeds]`` with Student's t interval; a single seed has none.

    With the three to ten seeds that runs of this kind have, a percentile bootstrap is far too narrow (of three
    seeds it calls one null comparison in five a difference), and an interquartile mean throws data away.
    """
    mean, count = float(np.mean(values)), len(values)
    if count < 2:
        return Estimate(mean, None, None, count)
    half = float(_quantile(count - 1) * standard_error(values))
    return Estimate(mean, mean - half, mean + half, count)


@cache
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %, asked by every cell of a table for the same few degrees of freedom."""
    return float(stats.t.ppf(0.975, freedom))


def standard_error(values: Array) -> float:
    """Standard error of the mean of ``[units]``; a twentieth of the time of ``scipy.stats.sem``, the same number."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def difference(a: Array, b: Array) -> Estimate:
    """Difference of the means of two algorithms' seeds, a minus b, with Welch's t interval."""
    value, count = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    if count < 2:
        return Estimate(value, None, None, count)
    if np.var(a) == np.var(b) == 0:  # deterministic references: the same number for every seed
        return Estimate(value, value, value, count)
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    return Estimate(value, float(low), float(high), count)


def probability_of_improvement(a: Array, b: Array) -> float:
    """P(a run of a beats a run of b), ties half: the Mann-Whitney statistic over all pairs."""
    return float(np.mean((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])))


@dataclass(frozen=True)
class Paired:
    """Mean and standard error of differences over images at the same prompts and noise."""

    mean: float
    error: float

    @property
    def shown(self) -> bool:
        """Whether the difference is above zero by more than two standard errors."""
        return self.mean > 2 * self.error


def paired_difference(after: Array, before: Array) -> Paired:
    """After - before, image by image; each ``[images]``."""
    delta = np.asarray(after) - np.asarray(before)
    return Paired(float(delta.mean()), standard_error(delta) if len(delta) > 1 else float("nan"))


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest and how high, each located on one half of the images and read on the other.

    ``points`` are the two locations; ``value``, ``rise`` (peak - start) and ``drop`` (peak - end) average the two
    readings.
    """

    points: tuple[int, int]
    value: float
    rise: Paired
    drop: Paired


def cross_fitted_peak(scores: Array) -> Peak:
    """The peak of mean scores ``[points, images]`` without calling the maximum of noise a peak.

    Even images locate and odd ones read, then the reverse, so no image is read where it helped to choose.
    """
    halves = [np.arange(scores.shape[1]) % 2 == k for k in (0, 1)]
    peak, points = np.empty(scores.shape[1]), []
    for locate, read in (halves, halves[::-1]):
        top = int(scores[:, locate].mean(1).argmax())
        points.append(top)
        peak[read] = scores[top, read]
    return Peak(
        (points[0], points[1]),
        float(peak.mean()),
        paired_difference(peak, scores[0]),
        paired_difference(peak, scores[-1]),
    )


def at_matched(x: Array, y: Array, target: float) -> float | None:
    """Y where the curve (x, y) first reaches x = target, by linear interpolation; None where it never does."""
    for k in range(len(x)):
        if x[k] >= target:
            if k == 0:
                return float(y[0])
            share = (target - x[k - 1]) / (x[k] - x[k - 1])
            return float(y[k - 1] + share * (y[k] - y[k - 1]))
    return None


def best_of_n_form(d: Array, alpha: float, beta: float) -> Array:
    """R(d) = d (alpha - beta d) (Gao et al., section 3.1), d = sqrt(KL), R relative to the base model."""
    return d * (alpha - beta * d)


def rl_form(d: Array, alpha: float, beta: float) -> Array:
    """R(d) = d (alpha - beta log d) (Gao et al., section 3.1); it does not hold near d = 0, where its slope is infinite."""
    return d * (alpha - beta * np.log(d))


def fit_best_of_n(d: Array, gold: Array) -> tuple[float, float]:
    """(alpha, beta) of ``best_of_n_form`` by least squares, for d > 0."""
    return _fit(np.stack([d, -(d**2)], 1), gold)


def fit_rl(d: Array, gold: Array) -> tuple[float, float]:
    """(alpha, beta) of ``rl_form`` by least squares, for d > 0."""
    return _fit(np.stack([d, -d * np.log(d)], 1), gold)


def _fit(columns: Array, gold: Array) -> tuple[float, float]:
    (alpha, beta), *_ = np.linalg.lstsq(columns, gold, rcond=None)
    return float(alpha), float(beta)
