"""Statistics against closed forms, scipy and hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from overopt_bench.report import statistics as stats


def test_interval_over_seeds_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        estimate = stats.over_seeds(rng.normal(1.0, 1.0, 3))
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 1.0 <= estimate.high
    assert 365 <= hits <= 395  # 380 expected


def test_three_seeds_a_side_seldom_call_nothing_a_difference() -> None:
    rng = np.random.default_rng(1)
    false = 0
    for _ in range(400):
        estimate = stats.difference(rng.normal(0, 1, 3), rng.normal(0, 2, 3))
        assert estimate.low is not None and estimate.high is not None
        false += not estimate.low <= 0 <= estimate.high
    assert false <= 34  # 20 expected; a percentile bootstrap gives over 80


def test_references_without_spread_have_an_interval_of_no_width() -> None:
    estimate = stats.difference(np.array([2.0, 2, 2]), np.array([1.0, 1, 1]))
    assert (estimate.value, estimate.low, estimate.high) == (1, 1, 1)


def test_one_seed_has_no_interval() -> None:
    estimate = stats.over_seeds(np.array([2.0]))
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (2.0, None, None, 1)


def test_probability_of_improvement_is_mann_whitney() -> None:
    a, b = np.array([1.0, 3, 5, 7]), np.array([2.0, 3, 4])
    expected = scipy_stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert stats.probability_of_improvement(a, b) == pytest.approx(expected)


def test_paired_difference_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(size=30)
    after = before + rng.normal(0.3, 0.1, 30)
    paired = stats.paired_difference(after, before)
    assert paired.mean / paired.error == pytest.approx(scipy_stats.ttest_rel(after, before).statistic)


def test_a_flat_noisy_curve_has_no_peak_but_its_naive_maximum_says_so() -> None:
    rng = np.random.default_rng(2)
    fitted, naive = [], []
    for _ in range(200):
        scores = rng.normal(0.0, 1.0, (11, 64))
        fitted.append(stats.cross_fitted_peak(scores).value)
        naive.append(scores.mean(1).max())
    assert abs(np.mean(fitted)) < 0.03 < 0.15 < np.mean(naive)


def test_a_real_peak_is_found_with_its_rise_and_drop() -> None:
    quirks = np.random.default_rng(3).normal(0, 5, 50)
    scores = np.array([0.0, 1, 3, 2])[:, None] + quirks
    peak = stats.cross_fitted_peak(scores)
    assert peak.points == (2, 2)
    assert (peak.rise.mean, peak.drop.mean) == (pytest.approx(3), pytest.approx(1))
    assert peak.rise.error == pytest.approx(0, abs=1e-9)


def test_matched_interpolation() -> None:
    x, y = np.array([0.0, 1, 3]), np.array([10.0, 20, 0])
    assert stats.at_matched(x, y, 2.0) == pytest.approx(10)
    assert stats.at_matched(x, y, 0.0) == 10
    assert stats.at_matched(x, y, 3.5) is None


def test_scaling_forms_are_recovered() -> None:
    d = np.linspace(0.5, 10, 30)
    assert stats.fit_best_of_n(d, d * (2 - 0.3 * d)) == (pytest.approx(2), pytest.approx(0.3))
    assert stats.fit_rl(d, d * (2 - 0.3 * np.log(d))) == (pytest.approx(2), pytest.approx(0.3))
    np.testing.assert_allclose(stats.best_of_n_form(d, 2, 0.3), d * (2 - 0.3 * d))
    np.testing.assert_allclose(stats.rl_form(d, 2, 0.3), d * (2 - 0.3 * np.log(d)))
