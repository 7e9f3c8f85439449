"""Aggregates over proxies against hand-worked cases, enumeration and scipy's bootstrap."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import IMAGES, write_run
from scipy import stats

from overopt_bench.report import build_report
from overopt_bench.report.aggregates import aggregates_table, improvement, interquartile_mean, moves, profile, where
from overopt_bench.report.figures import performance_profile
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs


def one_group(folder: Path) -> Group:
    (group,) = group_runs(find_runs([folder]))
    return group


def deviation(seed: int) -> float:
    """Of the made-up gold over the base model's images, where there is no noise."""
    return float(np.random.default_rng(seed).normal(0, 0.1, IMAGES).std())


def test_the_interquartile_mean_is_of_the_middle_half_of_all_runs() -> None:
    estimate = interquartile_mean([np.array([1.0, 100.0, 3.0]), np.array([4.0, -50.0]), np.array([5.0, 6.0, 2.0])])
    assert estimate.value == (2 + 3 + 4 + 5) / 4 and estimate.count == 8


def test_of_one_proxy_the_interval_is_that_of_scipys_percentile_bootstrap() -> None:
    values = np.random.default_rng(5).normal(0, 1, 24)
    ours = interquartile_mean([values])
    theirs = stats.bootstrap(
        (values,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)  # a limit of 2,000 resamples strays by 2 % of it
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_runs_are_drawn_within_their_proxy() -> None:
    """Of four runs at 0 and four at 1 the middle half is two of each; drawn from all eight it would vary."""
    estimate = interquartile_mean([np.zeros(4), np.ones(4)])
    assert (estimate.value, estimate.low, estimate.high) == (0.5, None, None)


def test_improvement_counts_ties_half_and_weighs_proxies_alike() -> None:
    first, second = np.array([2.0, -1.0, 0.0]), np.array([3.0, 0.1, 0.2, 9.0])
    estimate = improvement([first, second])
    assert estimate.value == ((1 + 0 + 0.5) / 3 + 1) / 2 and estimate.count == 7
    every = [(np.mean(wins) + 1) / 2 for wins in product((1, 0, 0.5), repeat=3)]  # all resamples of the first proxy
    low, high = np.percentile(every, (2.5, 97.5), method="inverted_cdf")
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_pairs_that_all_agree_and_single_seeds_have_no_interval() -> None:
    assert improvement([np.array([1.0, 2.0]), np.array([3.0, 4.0])]).low is None
    estimate = interquartile_mean([np.array([1.0]), np.array([2.0, 5.0])])
    assert (estimate.low, estimate.high) == (None, None)


def test_a_gold_that_is_no_number_is_not_trimmed_away() -> None:
    estimate = interquartile_mean([np.array([1.0, 2.0, 3.0]), np.array([np.nan, 2.0, 1.0])])
    assert np.isnan(estimate.value) and estimate.low is None


def test_a_profile_is_the_share_of_runs_above_tau() -> None:
    taus = np.array([0.0, 1.0, 2.5, 4.0])
    share, low, high = profile([np.array([1.0, 2.0]), np.array([3.0, 4.0])], taus)
    assert list(share) == [1, 0.75, 0.5, 0]
    assert list(low) == [1, 0.5, 0.5, 0] and list(high) == [1, 1, 0.5, 0]  # 1 is drawn twice in a quarter of resamples


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """On each of two proxies: ddpo ends where it began, 0.2 below its peak; tdpo_r ends 0.3 higher, at its peak."""
    for proxy, algo, seed in product(("aesthetic", "imagereward"), ("ddpo", "tdpo_r"), range(3)):
        write_run(tmp_path / "runs", algo, proxy=proxy, seed=seed, noise=0)
    return tmp_path / "runs"


def test_changes_and_falls_are_in_deviations_of_the_base_models_images(two: Path) -> None:
    found = moves(one_group(two), "human")
    scale = np.array([deviation(seed) for seed in range(3)])
    for proxy in ("aesthetic", "imagereward"):
        assert found["ddpo"][proxy].change == pytest.approx(0 * scale, abs=1e-9)
        assert found["ddpo"][proxy].fall == pytest.approx(0.2 / scale)
        assert found["tdpo_r"][proxy].change == pytest.approx(0.3 / scale)
        assert found["tdpo_r"][proxy].fall == pytest.approx(0 * scale, abs=1e-9)


def test_the_table_has_a_row_for_each_algorithm_and_compares_with_the_first(two: Path) -> None:
    table = aggregates_table(one_group(two)).set_index("algorithm")
    middle = np.sort([0.3 / deviation(seed) for seed in range(3) for _ in range(2)])[1:-1]
    assert table.loc["tdpo_r", "IQM of change"].value == pytest.approx(middle.mean())
    assert table.loc["ddpo", "IQM of fall from peak"].value == pytest.approx(middle.mean() * 2 / 3)
    assert table.loc["tdpo_r", "P(improvement)"].value == 1 and table.loc["ddpo", "P(improvement)"] is None
    assert list(table["over"]) == ["", "ddpo"] and list(table["pairs"]) == [0, 6] and list(table["runs"]) == [6, 6]


def test_the_figure_has_the_profiles_and_the_report_has_the_table(two: Path, tmp_path: Path) -> None:
    figure = performance_profile(one_group(two))
    assert figure is not None
    (ax,) = figure.axes
    (line,) = [line for line in ax.get_lines() if line.get_label() == "tdpo_r (6 runs)"]
    least, most = (0.3 / f(deviation(seed) for seed in range(3)) for f in (max, min))
    taus, share = line.get_xdata(), line.get_ydata()
    assert set(share[taus < least]) == {1} and share[-1] == 0 and set(share) <= {1, 4 / 6, 2 / 6, 0}
    assert taus[-1] == pytest.approx(most)
    build_report([two], tmp_path / "report")
    assert (tmp_path / "report" / "figures" / "performance_profiles.png").exists()
    row = pd.read_csv(tmp_path / "report" / "tables" / "aggregates.csv").set_index("algorithm").loc["tdpo_r"]
    assert row["P(improvement)"] == 1 and row["over"] == "ddpo"


def test_all_stand_on_the_same_proxies_and_who_has_few_of_them_is_left_out(tmp_path: Path) -> None:
    for proxy in ("aesthetic", "clipscore", "imagereward", "pickscore"):
        write_run(tmp_path, "ddpo", proxy=proxy)
        if proxy != "clipscore":
            write_run(tmp_path, "tdpo_r", proxy=proxy)
    write_run(tmp_path, "alignprop", proxy="aesthetic")
    group = one_group(tmp_path)
    found = moves(group, "human")
    assert {label: list(cells) for label, cells in found.items()} == {
        label: ["aesthetic", "imagereward", "pickscore"] for label in ("ddpo", "tdpo_r")
    }
    text = where(group)
    assert text.startswith("human over the proxies aesthetic, imagereward, pickscore") and "alignprop" in text


def test_one_proxy_has_no_aggregate(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", proxy="aesthetic")
    write_run(tmp_path, "ddpo", proxy="human")  # for which human is no gold
    group = one_group(tmp_path)
    assert aggregates_table(group).empty and performance_profile(group) is None and where(group) == ""
