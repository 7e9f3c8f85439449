"""Statistics against closed forms, brute force, scipy and hand-worked cases.

Each of these mistakes was made on purpose, and a test failed:

* a wrong pairing (b moved on by one seed): test_pairs_are_of_equal_seeds_in_whatever_order_they_come;
* a forgotten cluster (errors over images): test_errors_over_prompts_are_right_where_those_over_images_are_not;
* the first seed for the mean (``ys[0]``): test_report_numbers.test_a_line_is_the_mean_over_seeds;
* p without Holm's correction: test_report_numbers.test_p_is_corrected_for_the_pairs_of_one_question,
  test_compare.test_holm_is_over_the_table;
* Holm's correction counts what can never be shown: test_what_can_never_be_shown_hides_nothing;
* lines and columns of the filmstrip's grid swapped: test_report_numbers.test_a_frame_is_cut_out_by_line_and_column;
* the path KL of the other split: test_report_numbers.test_gold_at_equal_kl_is_read_at_the_kl_of_its_own_split.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from scipy import stats as scipy_stats

from overopt_bench.evaluation.clusters import prompt_means, standard_error, units
from overopt_bench.report import peaks
from overopt_bench.report import statistics as stats
from overopt_bench.report.wording import shown

FOUR_EACH = [f"prompt {k // 4}" for k in range(64)]


def test_interval_over_seeds_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        estimate = stats.over_seeds(rng.normal(1.0, 1.0, 3))
        assert estimate.low is not None and estimate.high is not None
        hits += estimate.low <= 1.0 <= estimate.high
    assert 365 <= hits <= 395  # 380 expected


def test_the_interval_of_a_curve_is_that_of_each_of_its_points() -> None:
    curves = np.random.default_rng(5).normal(0, 1, (4, 6))  # [seeds, points]
    mean, low, high = stats.interval_of_mean(curves)
    np.testing.assert_allclose(mean, curves.mean(0))
    for point in range(6):
        expected = scipy_stats.ttest_1samp(curves[:, point], 0).confidence_interval()
        assert (low[point], high[point]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert np.isnan(stats.interval_of_mean(curves[:1])[1]).all()


def test_one_seed_has_no_interval() -> None:
    estimate = stats.over_seeds(np.array([2.0]))
    assert (estimate.value, estimate.low, estimate.high, estimate.count) == (2.0, None, None, 1)
    assert not estimate.clear


def test_pairs_are_of_equal_seeds_in_whatever_order_they_come() -> None:
    a = {4: 1.0, 0: 10.0, 2: 5.0, 9: 100.0}
    b = {2: 4.0, 7: -100.0, 4: 0.5, 0: 8.0}
    np.testing.assert_array_equal(stats.paired_by_seed([*a], [*a.values()], [*b], [*b.values()]), [2.0, 1.0, 0.5])
    found = stats.difference(a, b)
    test = scipy_stats.ttest_rel([10.0, 5.0, 1.0], [8.0, 4.0, 0.5])
    interval = test.confidence_interval()
    assert found.paired and found.count == 3 and found.value == pytest.approx(3.5 / 3)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (found.wins, found.of) == (3, 3)


def test_curves_are_paired_as_numbers_are() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.normal(0, 1, (3, 5)), rng.normal(0, 1, (4, 5))
    found = stats.paired_by_seed([0, 1, 2], a, [2, 3, 1, 0], b)
    np.testing.assert_allclose(found, a - b[[3, 2, 0]])


def test_what_seeds_share_falls_out_of_a_paired_difference() -> None:
    """Seeds that differ far more than two labels do: ten pairs show what Welch's interval cannot."""
    rng = np.random.default_rng(7)
    shared = rng.normal(0, 1, 10)
    a, b = (dict(enumerate(shared + effect + rng.normal(0, 0.05, 10))) for effect in (0.2, 0.0))
    found = stats.difference(a, b)
    welch = stats._welch(np.array([*a.values()]), np.array([*b.values()]))
    assert found.clear and not welch.clear and found.p == stats.smallest_p(10) and found.of == 10 == found.wins


def test_without_two_common_seeds_the_interval_is_welchs() -> None:
    a, b = {0: 1.0, 1: 2.0, 2: 4.0}, {2: 0.0, 3: 1.0, 4: 1.5}
    found = stats.difference(a, b)
    test = scipy_stats.ttest_ind([*a.values()], [*b.values()], equal_var=False)
    interval = test.confidence_interval()
    assert not found.paired and found.p == pytest.approx(test.pvalue) and (found.of, found.count) == (9, 3)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.wins == scipy_stats.mannwhitneyu([*a.values()], [*b.values()]).statistic


def test_a_single_pair_has_a_difference_and_nothing_more() -> None:
    found = stats.difference({3: 2.0}, {3: 0.5})
    assert (found.value, found.low, found.high, found.p, found.paired) == (1.5, None, None, 1.0, True)
    found = stats.difference({3: 2.0}, {3: 0.5, 4: 0.5})
    assert not found.paired and found.low is None and np.isnan(found.p)


@pytest.mark.parametrize("pairs", [1, 2, 3, 6, 9])
def test_sign_flips_are_all_tried(pairs: int) -> None:
    values = np.random.default_rng(pairs).normal(0.4, 1, pairs)
    flipped = [abs(np.dot(signs, values)) for signs in product((-1, 1), repeat=pairs)]
    expected = np.mean([total >= abs(values.sum()) - 1e-12 for total in flipped])
    assert stats.sign_flip_p(values) == pytest.approx(expected) and expected >= stats.smallest_p(pairs)
    if pairs > 1:
        test = scipy_stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=2**pairs)
        assert stats.sign_flip_p(values) == pytest.approx(test.pvalue)


def test_beyond_sixteen_pairs_signs_are_drawn_and_always_the_same_ones() -> None:
    values = np.random.default_rng(3).normal(0.5, 1, 18)
    exact = np.mean(np.abs(stats._signs(18) @ values) >= abs(values.sum()) - 1e-12)
    assert stats.sign_flip_p(values) == pytest.approx(exact, abs=0.002) == stats.sign_flip_p(values)
    assert stats.sign_flip_p(np.ones(30)) == pytest.approx(1e-5)


def test_equal_labels_have_p_one_and_what_is_not_finite_has_none() -> None:
    assert stats.sign_flip_p(np.zeros(5)) == 1
    assert np.isnan(stats.sign_flip_p(np.array([1.0, np.nan]))) and np.isnan(stats.sign_flip_p(np.array([])))


def test_fewer_than_six_pairs_never_reach_p_below_a_twentieth() -> None:
    assert [stats.smallest_p(n) for n in (1, 2, 3, 5, 6)] == [1, 0.5, 0.25, 0.0625, 0.03125]
    assert stats.sign_flip_p(np.array([1.0, 1.1, 1.2, 1.3, 1.4])) == 0.0625


def test_nothing_is_shown_of_what_is_not_a_number() -> None:
    found = stats.difference({0: 1.0, 1: np.nan, 2: 2.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert not found.clear and not found.p <= 1
    assert not peaks.Paired(1.0, float("nan")).shown and not peaks.Paired(float("nan"), 0.1).shown
    assert not peaks.paired_difference(np.array([3.0]), np.array([1.0]), ["a"]).shown


def test_six_pairs_show_only_what_all_of_them_agree_on() -> None:
    """Six of six above zero with probability .8: the normal quantile of .8 to the power 1/6. Five pairs show nothing."""
    assert stats.smallest_effect(6) == pytest.approx(scipy_stats.norm.ppf(0.8 ** (1 / 6)), rel=0.02)
    assert stats.smallest_effect(5) == np.inf


@pytest.mark.parametrize("pairs", [7, 10, 12])
def test_the_smallest_effect_is_shown_four_times_in_five(pairs: int) -> None:
    """By the verdict's own rule, on other draws; and half of it less than half as often."""
    drawn = np.random.default_rng(5).standard_normal((2_000, pairs))

    def share(effect: float) -> float:
        found = [stats.against_zero(one + effect) for one in drawn]
        return float(np.mean([shown(one, one.p) for one in found]))

    assert share(stats.smallest_effect(pairs)) == pytest.approx(0.8, abs=0.03)
    assert share(stats.smallest_effect(pairs) / 2) < 0.4


def test_the_smallest_effect_of_many_pairs_is_the_t_tests() -> None:
    """And near (1.96 + 0.84) / sqrt(n), what it comes to with a known deviation."""
    freedom, effect = 95, stats.smallest_effect(96)
    beyond = scipy_stats.nct.sf(scipy_stats.t.ppf(0.975, freedom), freedom, effect * 96**0.5)
    assert beyond == pytest.approx(0.8) and effect == pytest.approx((1.96 + 0.8416) / 96**0.5, rel=0.02)


def test_holm_asks_for_more_pairs() -> None:
    """2/2^6 = .031 is below .05, ten times it is not, nor is ten times 2/2^8 = .0078; ten times 2/2^9 = .0039 is."""
    assert [stats.pairs_for(m) for m in (1, 10, 45)] == [6, 9, 11]


def test_holm_by_hand() -> None:
    """Of .01, .04, .03: 3 x .01 = .03; 2 x .03 = .06; 1 x .04, which may not be below .06."""
    assert stats.holm([0.01, 0.04, 0.03]) == [pytest.approx(0.03), pytest.approx(0.06), pytest.approx(0.06)]
    assert stats.holm([0.6, 0.5]) == [1.0, 1.0] and stats.holm([0.02]) == [0.02] and stats.holm([]) == []
    first, none, second = stats.holm([0.02, float("nan"), 0.03])
    assert (first, second) == (0.04, 0.04) and np.isnan(none)


def flips(pairs: int, mean: float, paired: bool = True) -> stats.Difference:
    """A difference that is about ``mean`` in each of some pairs, whose p is the smallest that so many can have."""
    return replace(stats.against_zero(mean + np.linspace(-0.1, 0.1, pairs) * mean), paired=paired)


def test_what_can_never_be_shown_hides_nothing() -> None:
    """Of ten, eight, five and three pairs the first two make the family; with all four .0078 would be tripled."""
    found = [flips(3, 1.0), flips(8, 1.0), flips(5, 2.0), flips(10, -1.0)]
    assert stats.corrected(found) == [0.25, 2 / 2**8, pytest.approx(2 * 2 / 2**5), 2 * 2 / 2**10]
    assert stats.holm([one.p for one in found])[1] == 3 * 2 / 2**8
    welch = flips(5, 1.0, paired=False)  # whose p can be as small as it likes
    assert stats.corrected([flips(8, 1.0), welch]) == [2 * 2 / 2**8, 2 / 2**5]


def test_leaving_out_few_pairs_shows_nothing_false_more_often() -> None:
    """Equal methods, three with three seeds each beside three with eight: a family shows something in at most 5 %."""
    rng, false, naive = np.random.default_rng(4), 0, 0
    for _ in range(2000):
        found = [stats.against_zero(rng.standard_normal(pairs)) for pairs in (3, 3, 3, 8, 8, 8)]
        false += min(stats.corrected(found)) <= 0.05
        naive += min(one.p for one in found) <= 0.05
    assert false <= 0.06 * 2000 < naive


def test_holm_shows_something_false_at_most_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    families = rng.uniform(size=(2000, 10))
    false = np.mean([min(stats.holm([*family])) <= 0.05 for family in families])
    naive = np.mean(families.min(1) <= 0.05)
    assert 0.035 <= false <= 0.065 and naive > 0.35


def test_probability_of_improvement_is_mann_whitney() -> None:
    a, b = np.array([1.0, 3, 5, 7]), np.array([2.0, 3, 4])
    expected = scipy_stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert stats.probability_of_improvement(a, b) == pytest.approx(expected)


def test_prompts_are_averaged_wherever_their_images_stand() -> None:
    values = np.array([[1.0, 10, 3, 30, 5], [0, 0, 6, 2, 0]])
    np.testing.assert_allclose(prompt_means(values, ["a", "b", "a", "b", "a"]), [[3, 20], [2, 1]])
    np.testing.assert_allclose(units(values[0], ["a"] * 5), values[0])  # one prompt: its images


def test_paired_difference_is_the_paired_t_test_over_prompts() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(size=64)
    after = before + rng.normal(0.3, 0.1, 64)
    paired = peaks.paired_difference(after, before, FOUR_EACH)
    means = [values.reshape(16, 4).mean(1) for values in (after, before)]
    assert paired.mean / paired.error == pytest.approx(scipy_stats.ttest_rel(*means).statistic)


def test_errors_over_prompts_are_right_where_those_over_images_are_not() -> None:
    """Images of a prompt correlate with rho = .5: errors over images are too small by sqrt(1 + (4 - 1) rho) = 1.58."""
    rng = np.random.default_rng(4)
    naive, clustered = [], []
    for _ in range(1000):
        values = np.repeat(rng.normal(0, 1, 16), 4) + rng.normal(0, 1, 64)
        clustered.append(peaks.paired_difference(values, np.zeros(64), FOUR_EACH).error ** 2)
        naive.append(standard_error(values) ** 2)
    truth = np.sqrt((1 + 1 / 4) / 16)  # of the mean of 16 prompts, each the mean of its four images
    assert np.mean(clustered) ** 0.5 == pytest.approx(truth, rel=0.03)
    assert truth / np.mean(naive) ** 0.5 == pytest.approx(np.sqrt(1 + 3 * 0.5), rel=0.04)


def test_halves_have_half_of_each_prompts_images_and_share_none() -> None:
    half = peaks.halves(["a", "b", "a", "b", "a", "a", "b", "b"])
    np.testing.assert_array_equal(half, [0, 0, 1, 1, 0, 1, 0, 1])
    assert peaks.halves(["a", "b", "c", "d"]).tolist() == [0, 1, 0, 1]  # one image each: the prompts alternate


def test_a_flat_noisy_curve_has_no_peak_but_its_naive_maximum_says_so() -> None:
    rng = np.random.default_rng(2)
    fitted, naive = [], []
    for _ in range(200):
        scores = rng.normal(0.0, 1.0, (11, 64))
        fitted.append(peaks.cross_fitted_peak(scores, FOUR_EACH).value)
        naive.append(scores.mean(1).max())
    assert abs(np.mean(fitted)) < 0.03 < 0.15 < np.mean(naive)


def test_a_real_peak_is_found_with_its_rise_and_drop() -> None:
    quirks = np.random.default_rng(3).normal(0, 5, 64)
    scores = np.array([0.0, 1, 3, 2])[:, None] + quirks
    peak = peaks.cross_fitted_peak(scores, FOUR_EACH)
    assert peak.points == (2, 2) and peak.value - peak.end == pytest.approx(1)
    assert (peak.rise.mean, peak.drop.mean) == (pytest.approx(3), pytest.approx(1))
    assert peak.rise.error == pytest.approx(0, abs=1e-9)


def test_each_half_is_read_where_the_other_one_found_the_peak() -> None:
    """The first images of both prompts are highest at point 1, the second ones at point 2."""
    prompts = ["a", "a", "b", "b"]
    scores = np.array([[0.0, 0, 0, 0], [9, 1, 9, 3], [5, 8, 7, 8], [0, 0, 0, 0]])
    peak = peaks.cross_fitted_peak(scores, prompts)
    assert peak.points == (1, 2)
    assert peak.value == (1 + 3 + 5 + 7) / 4  # even images at point 2, odd ones at point 1
    assert peaks.read_at(peak.points, scores, prompts) == peak.value
    assert peak.drop.error == pytest.approx(standard_error(np.array([3.0, 5.0])))  # of the prompts' means


def test_matched_interpolation() -> None:
    x, y = np.array([0.0, 1, 3]), np.array([10.0, 20, 0])
    assert stats.at_matched(x, y, 2.0) == pytest.approx(10)
    assert stats.at_matched(x, y, 0.0) == 10
    assert stats.at_matched(x, y, 3.5) is None
    assert stats.at_matched(x, y, -1.0) is None  # it starts beyond and never crosses


def test_the_first_of_several_crossings_is_the_one_that_is_read() -> None:
    x, y = np.array([0.0, 2, 0, 4]), np.array([0.0, 10, 20, 30])
    assert stats.at_matched(x, y, 1.0) == pytest.approx(5)
    assert stats.at_matched(np.array([0.0, np.nan, 2]), np.array([0.0, 99, 2]), 1.0) == pytest.approx(1)


def test_scaling_forms_are_recovered() -> None:
    d = np.linspace(0.5, 10, 30)
    assert stats.fit_best_of_n(d, d * (2 - 0.3 * d)) == (pytest.approx(2), pytest.approx(0.3))
    assert stats.fit_rl(d, d * (2 - 0.3 * np.log(d))) == (pytest.approx(2), pytest.approx(0.3))
    np.testing.assert_allclose(stats.best_of_n_form(d, 2, 0.3), d * (2 - 0.3 * d))
    np.testing.assert_allclose(stats.rl_form(d, 2, 0.3), d * (2 - 0.3 * np.log(d)))
