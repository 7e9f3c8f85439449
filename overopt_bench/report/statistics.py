"""Statistics over seeds: pure functions on arrays, nothing drawn.

Runs of one seed share prompts, sampling noise and the initial adapter, so labels are compared seed by seed wherever both
have the seed. The probability of improvement follows Agarwal et al. (2021, "Deep RL at the edge of the statistical
precipice"), the scaling forms Gao et al. (2022, arXiv 2210.10760).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, log2, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import bisect, brentq

Array = NDArray[np.float64]
LEVEL = 0.05  # of p below which a difference is called shown
EXACT = 16  # pairs up to which all sign flips are tried
FLIPS = 99_999  # choices of signs that are drawn beyond that
DRAWN = 10  # pairs up to which power is found by drawing
EXPERIMENTS = 4_000


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval (None where there is none) over ``count`` units."""

    value: float
    low: float | None
    high: float | None
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves zero out; False where there is none, or it is not a number."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Difference(Estimate):
    """A difference of two labels, a minus b; ``count`` is the number of pairs where it is paired.

    Attributes:
        p: two-sided; not a number where there is nothing to compute it from.
        wins: in how many pairs a is above b, a tie being half a win.
        of: how many pairs: those of equal seeds, or where it is not paired every run of a with every run of b.
        paired: whether runs of equal seeds were compared.
    """

    p: float
    wins: float
    of: int
    paired: bool


def interval_of_mean(values: ArrayLike) -> tuple[Array, Array, Array]:
    """Mean over seeds with its two-sided 95 % interval of Student's t.

    With the three to ten seeds that runs of this kind have, a percentile bootstrap is far too narrow (of three
    seeds it calls one null comparison in five a difference), and an interquartile mean throws data away.

    Args:
        values: ``[seeds, ...]``, such as a curve of each seed ``[seeds, points]``.

    Returns:
        Mean, low and high, each ``[...]``; low and high are not numbers where there is a single seed.
    """
    seeds = np.asarray(values, float)
    count, mean = len(seeds), seeds.mean(0)
    if count < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = _quantile(count - 1) * seeds.std(0, ddof=1) / count**0.5
    return mean, mean - half, mean + half


def over_seeds(values: Array) -> Estimate:
    """Mean over seeds ``[seeds]`` with Student's t interval; a single seed has none."""
    mean, low, high = map(float, interval_of_mean(values))
    known = len(values) > 1
    return Estimate(mean, low if known else None, high if known else None, len(values))


@cache
def _quantile(freedom: int) -> float:
    """Student's t at 97.5 %, asked by every cell of a table for the same few degrees of freedom."""
    return float(stats.t.ppf(0.975, freedom))


def common_seeds(a: Sequence[int], b: Sequence[int]) -> tuple[list[int], list[int]]:
    """Find the seeds that both labels have: where they stand in ``a`` and where in ``b``, by ascending seed."""
    both = sorted({*a} & {*b})
    return [list(a).index(seed) for seed in both], [list(b).index(seed) for seed in both]


def paired_by_seed(seeds_a: Sequence[int], a: ArrayLike, seeds_b: Sequence[int], b: ArrayLike) -> Array:
    """Subtract b from a seed by seed, for the seeds that both have.

    Args:
        seeds_a: the seed of each run of a.
        a: of each of these runs a number or a curve, ``[runs, ...]``.
        seeds_b: the seed of each run of b.
        b: as ``a``.

    Returns:
        The differences ``[pairs, ...]`` by ascending seed; their mean has the interval ``interval_of_mean``.
    """
    here, there = common_seeds(seeds_a, seeds_b)
    differences: Array = np.asarray(a, float)[here] - np.asarray(b, float)[there]
    return differences


@cache
def _signs(pairs: int) -> Array:
    """All choices of signs but for the first one's, which may stay: ``[2^(pairs - 1), pairs]``."""
    flipped = np.arange(2 ** (pairs - 1))[:, None] >> np.arange(pairs - 1) & 1
    return np.concatenate([np.ones((len(flipped), 1)), 1.0 - 2 * flipped], 1)


def sign_flip_p(differences: Array) -> float:
    """Two-sided p of paired differences ``[pairs]``: how often flipping signs gives a mean as far from zero.

    If nothing tells a from b, each difference could as well have had the other sign. All 2^pairs choices are tried up
    to 16 pairs, beyond that 99,999 drawn ones with a fixed seed. No p is below 2/2^pairs, see ``smallest_p``.

    Returns:
        The p; not a number where there is no pair or a difference is not finite.
    """
    values = np.asarray(differences, float)
    if not len(values) or not np.isfinite(values).all():
        return float("nan")
    rounding = 1e-12 * np.abs(values).sum()  # two orders of the same sum are one value
    if len(values) <= EXACT:
        return float(np.mean(np.abs(_signs(len(values)) @ values) >= abs(values.sum()) - rounding))
    drawn = np.random.default_rng(0).choice((-1.0, 1.0), (FLIPS, len(values)))
    beyond = int((np.abs(drawn @ values) >= abs(values.sum()) - rounding).sum())
    return float((beyond + 1) / (FLIPS + 1))  # what was seen is one of the choices


def smallest_p(pairs: int) -> float:
    """Return the smallest two-sided p that sign flips of so many pairs can give: 2/2^pairs, reached where all agree."""
    least: float = 2.0 / 2**pairs
    return min(1.0, least)


def pairs_for(comparisons: int) -> int:
    """Return how many pairs it takes until sign flips can show the clearest of so many comparisons after Holm's correction."""
    return ceil(log2(2 * comparisons / LEVEL))


@cache
def smallest_effect(pairs: int, power: float = 0.8) -> float:
    """Return the smallest true mean difference that is shown with a probability of ``power``, if nothing else is compared.

    Differences are taken to be normal. Up to ten pairs it is found from 4,000 drawn experiments, always the same ones, for sign
    flips of few pairs show less than a t test; beyond that by the noncentral t distribution, which is then as good.

    Args:
        pairs: how many.
        power: from above .05 to below 1.

    Returns:
        The difference in standard deviations of a single pair's difference; infinite for fewer than six pairs, whose sign
        flips show nothing at 5 %.
    """
    if smallest_p(pairs) > LEVEL:
        return float("inf")
    root = sqrt(pairs)
    if pairs > DRAWN:
        beyond = stats.nct.sf  # a difference of the wrong sign is as good as impossible
        return float(brentq(lambda d: beyond(_quantile(pairs - 1), pairs - 1, d) - power, 0.0, 10.0)) / root
    drawn, signs = np.random.default_rng(0).standard_normal((EXPERIMENTS, pairs)), _signs(pairs).T

    def lacking(effect: float) -> float:
        values = drawn + effect
        sums = np.abs(values.sum(1))
        flips = (np.abs(values @ signs) >= sums[:, None] - 1e-9).mean(1) <= LEVEL
        clear = sums > _quantile(pairs - 1) * values.std(1, ddof=1) * root
        share = float(np.mean(flips & clear))
        return share - power

    return float(bisect(lacking, 0.0, 10.0, xtol=1e-3))


def holm(ps: Sequence[float]) -> list[float]:
    """Correct p values for their number, so that a family shows anything false at most as often as one of them alone.

    Holm (1979): the smallest is multiplied by m, the next by m - 1 and so on, and none is below one before it. What is not
    a number is no member of the family, and stays.
    """
    known = sorted((p, k) for k, p in enumerate(ps) if p == p)  # nan is unlike itself
    corrected, largest = list(ps), 0.0
    for place, (p, k) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - place)))
        corrected[k] = largest
    return corrected


def corrected(found: Sequence[Difference]) -> list[float]:
    """Correct the p of differences that stand beside each other for their number, by ``holm``.

    Where sign flips of a few pairs cannot reach ``LEVEL``, a difference is never called shown, whatever was measured. It adds no
    false finding, and to count it would only hide others, so the family is of those that can be shown (Tarone, 1990, "A
    modified Bonferroni method for discrete data"). The p of the rest is corrected for all.

    Returns:
        The corrected p of each, in the order given.
    """
    ps = [one.p for one in found]
    every = holm(ps)
    able = [k for k, one in enumerate(found) if not one.paired or smallest_p(one.count) <= LEVEL]
    for k, p in zip(able, holm([ps[k] for k in able]), strict=True):
        every[k] = p
    return every


def against_zero(differences: Array) -> Difference:
    """Describe paired differences ``[pairs]``: mean, t interval, exact sign-flip p, and how many are above zero."""
    values = np.asarray(differences, float)
    mean = over_seeds(values) if len(values) else Estimate(float("nan"), None, None, 0)
    wins = float(np.sum(values > 0) + 0.5 * np.sum(values == 0))
    return Difference(mean.value, mean.low, mean.high, mean.count, sign_flip_p(values), wins, len(values), paired=True)


def difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Difference of two labels' means, a minus b, each a number by seed.

    Paired over the seeds that both have. Where these are fewer than two, the runs are taken as independent: Welch's t
    interval and p over all runs of each, with neither where a label has a single run.
    """
    pairs = paired_by_seed([*a], [*a.values()], [*b], [*b.values()])
    if len(pairs) > 1 or (len(pairs) == len(a) == len(b) == 1):
        return against_zero(pairs)
    return _welch(np.array([*a.values()], float), np.array([*b.values()], float))


def _welch(a: Array, b: Array) -> Difference:
    value, count = float(np.mean(a) - np.mean(b)), min(len(a), len(b))
    wins, of = probability_of_improvement(a, b) * len(a) * len(b), len(a) * len(b)
    if count < 2 or np.var(a) == np.var(b) == 0:
        return Difference(value, None, None, count, float("nan"), wins, of, paired=False)
    test = stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Difference(value, float(low), float(high), count, float(test.pvalue), wins, of, paired=False)


def probability_of_improvement(a: Array, b: Array) -> float:
    """P(a run of a beats a run of b), ties half: the Mann-Whitney statistic over all pairs."""
    return float(np.mean((a[:, None] > b[None]) + 0.5 * (a[:, None] == b[None])))


def at_matched(x: Array, y: Array, target: float) -> float | None:
    """Y where the curve (x, y) first reaches x = target, by linear interpolation.

    Args:
        x: along the budget ``[points]``.
        y: at the same points ``[points]``; points where either is not finite are left out.
        target: of x.

    Returns:
        None where the curve never gets there, or is beyond the target from the start: then it never crosses it.
    """
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    reached = np.flatnonzero(x >= target)
    if not len(reached) or x[0] > target:
        return None
    k = int(reached[0])
    if k == 0:
        return float(y[0])
    share = (target - x[k - 1]) / (x[k] - x[k - 1])
    return float(y[k - 1] + share * (y[k] - y[k - 1]))


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
