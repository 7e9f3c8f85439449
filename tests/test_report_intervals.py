"""What the curves and the differences show, from runs whose values are known to the last digit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fake_runs import IMAGES, POINTS, write_run
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from overopt_bench.report import curves
from overopt_bench.report.differences import differences
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs

T = {1: 12.70620, 2: 4.302653}  # Student's t at 97.5 %, by degrees of freedom, from a printed table
STEPS = np.arange(5)


def exact(out: Path, algo: str, seed: int, human: Sequence[float] | np.ndarray, **more) -> None:
    """A run whose mean gold is ``human`` exactly: what its images bring along is taken off."""
    brought = np.random.default_rng(seed).normal(0, 0.1, IMAGES).mean()
    write_run(out, algo, seed=seed, noise=0, others={"human": np.asarray(human) - brought}, **more)


def one_group(folder: Path) -> Group:
    (group,) = group_runs(find_runs([folder]))
    return group


def panel(figure: Figure | None, name: str) -> Axes:
    assert figure is not None
    return next(ax for ax in figure.axes if ax.get_ylabel() == name)


def line(ax: Axes, label: str) -> Line2D:
    return next(one for one in ax.get_lines() if one.get_label() == label)


def bands(ax: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    """Low and high of each filled interval, by its abscissa."""
    found = []
    for band in ax.collections:
        if isinstance(band, PolyCollection):
            (path,) = band.get_paths()
            xs = np.unique(path.vertices[:, 0])
            ys = [path.vertices[path.vertices[:, 0] == x, 1] for x in xs]
            found.append((np.array([y.min() for y in ys]), np.array([y.max() for y in ys])))
    return found


def single(ax: Axes) -> list[np.ndarray]:
    return [line for lines in ax.collections if isinstance(lines, LineCollection) for line in lines.get_segments()]


def said(figure: Figure) -> tuple[str, list[str]]:
    """The note of a figure's legend, on one line, and the legend's labels."""
    (legend,) = figure.legends
    note = " ".join(legend.get_title().get_text().split())
    return note, [text.get_text() for text in legend.get_texts()]


def test_a_curve_is_the_mean_over_seeds_with_its_t_interval_and_the_seeds_themselves(tmp_path: Path) -> None:
    spread = (-0.01, 0.0, 0.01)
    for seed, apart in enumerate(spread):
        exact(tmp_path, "ddpo", seed, 0.5 + (0.1 + apart) * STEPS)
        exact(tmp_path, "base", seed, [0.5] * 5)
    exact(tmp_path, "tdpo_r", 0, 0.5 + 0.05 * STEPS)
    figure = curves.proxy_and_gold(one_group(tmp_path))
    ax = panel(figure, "truth: human")
    assert line(ax, "ddpo (3 seeds)").get_ydata() == pytest.approx(0.5 + 0.1 * STEPS)
    ((low, high),) = bands(ax)  # neither for the single seed nor for what stays as it is
    half = T[2] * 0.01 * STEPS / 3**0.5
    assert low == pytest.approx(0.5 + 0.1 * STEPS - half, abs=1e-6)
    assert high == pytest.approx(0.5 + 0.1 * STEPS + half, abs=1e-6)
    seeds = [0.5 + (0.1 + apart) * STEPS for apart in spread]
    assert [one[:, 1] for one in single(ax)][:3] == [pytest.approx(seed) for seed in seeds]
    assert len(single(ax)) == 3
    note, labels = said(figure)
    assert labels == ["base", "ddpo (3 seeds)", "tdpo_r (1 seed)"]
    assert "95 % interval (Student t)" in note and "faint lines: single seeds" in note


def test_very_many_single_seeds_are_not_drawn(tmp_path: Path) -> None:
    for tag in "abcdefghi":
        for seed in range(3):
            exact(tmp_path, "ddpo", seed, 0.5 + 0.1 * STEPS, tag=tag, folder=tmp_path / f"{tag}{seed}")
    figure = curves.proxy_and_gold(one_group(tmp_path))
    assert not single(panel(figure, "truth: human")) and len(bands(panel(figure, "truth: human"))) == 9
    assert "faint" not in said(figure)[0]


def test_an_interval_of_two_seeds_leaves_the_lines_their_room(tmp_path: Path) -> None:
    """It is 9 times as wide as they are apart; lines between 0.5 and 1 keep half of the panel's height."""
    exact(tmp_path, "ddpo", 0, [0.5, 0.5, 0.5, 0.5, 0.6])
    exact(tmp_path, "ddpo", 1, [0.5, 0.6, 0.7, 0.8, 1.0])
    ax = panel(curves.proxy_and_gold(one_group(tmp_path)), "truth: human")
    bottom, top = ax.get_ylim()
    assert 0.25 - 0.06 < bottom < 0.5 and 1.0 < top < 1.25 + 0.06
    ((low, high),) = bands(ax)
    assert high[-1] - low[-1] == pytest.approx(2 * T[1] * 0.4 / 2, rel=1e-4)  # the interval itself is whole


def test_differences_are_between_equal_seeds_with_the_t_interval_of_the_pairs(tmp_path: Path) -> None:
    start = {0: 0.1, 1: 0.7, 2: 0.3, 3: 0.9}  # far apart, and the same in both of a pair
    for seed in (0, 1, 2):
        exact(tmp_path, "ddpo", seed, start[seed] + 0.1 * STEPS)
    for seed, slope in ((1, 0.2), (2, 0.4), (3, 5.0)):  # 0.1 and 0.3 steeper than the pair; seed 3 has none
        exact(tmp_path, "tdpo_r", seed, start[seed] + slope * STEPS)
    exact(tmp_path, "alignprop", 0, start[0] + 9 * STEPS)
    figure = differences(one_group(tmp_path))
    ax = panel(figure, "truth: human")
    drawn = line(ax, "tdpo_r (2 pairs)")
    assert list(drawn.get_xdata()) == list(POINTS)
    assert drawn.get_ydata() == pytest.approx(0.2 * STEPS)
    ((low, high),) = bands(ax)
    half = T[1] * 0.1 * STEPS  # the deviation of 0.1 and 0.3 is 0.2 / sqrt(2), over sqrt(2)
    assert low == pytest.approx(0.2 * STEPS - half, abs=1e-5) and high == pytest.approx(0.2 * STEPS + half, abs=1e-5)
    assert any(list(one.get_ydata()) == [0, 0] for one in ax.get_lines())
    assert line(panel(figure, "proxy: aesthetic"), "tdpo_r (2 pairs)").get_ydata() == pytest.approx(0 * STEPS)
    assert figure is not None and "Difference to ddpo" in figure.get_suptitle()
    note, labels = said(figure)
    assert labels == ["tdpo_r (2 pairs)"]
    assert "95 % interval (Student t)" in note
    assert note.endswith("left out for fewer than two seeds in common: alignprop")


def test_differences_are_at_equal_queries(tmp_path: Path) -> None:
    """The reference gains 0.001 a query, and 0.0005 more of these in the other, which was evaluated elsewhere."""
    elsewhere = (0, 50, 150, 390, 480)
    for seed in (0, 1):
        exact(tmp_path, "ddpo", seed, np.array(POINTS) / 1000)
        exact(tmp_path, "tdpo_r", seed, np.array(elsewhere) * 0.0015, points=elsewhere)
    drawn = line(panel(differences(one_group(tmp_path)), "truth: human"), "tdpo_r (2 pairs)")
    assert list(drawn.get_xdata()) == [0, 50, 150, 390]  # the reference had not spent 480
    assert drawn.get_ydata() == pytest.approx(0.0005 * np.array([0, 50, 150, 390]))


def test_who_lacks_pairs_on_one_proxy_is_named_with_it(tmp_path: Path) -> None:
    for seed in (0, 1):
        for algo, proxy in (("ddpo", "aesthetic"), ("ddpo", "imagereward"), ("tdpo_r", "aesthetic")):
            exact(tmp_path, algo, seed, 0.5 + 0.1 * STEPS, proxy=proxy)
    exact(tmp_path, "tdpo_r", 0, 0.5 + 0.1 * STEPS, proxy="imagereward")
    figure = differences(one_group(tmp_path))
    assert figure is not None and said(figure)[0].endswith("in common: tdpo_r (imagereward)")


def test_without_a_second_algorithm_or_common_seeds_there_are_no_differences(tmp_path: Path) -> None:
    for seed in (0, 1):
        exact(tmp_path / "alone", "ddpo", seed, 0.5 + 0.1 * STEPS)
        exact(tmp_path / "apart", "ddpo", seed, 0.5 + 0.1 * STEPS)
        exact(tmp_path / "apart", "tdpo_r", seed + 2, 0.5 + 0.1 * STEPS)
    assert differences(one_group(tmp_path / "alone")) is None
    assert differences(one_group(tmp_path / "apart")) is None


def test_who_has_no_line_is_not_in_the_legend(tmp_path: Path) -> None:
    """Selection has no path KL, and a policy that stays as it is would be one point of that plane."""
    for algo in ("ddpo", "best_of_n", "base"):
        exact(tmp_path, algo, 0, 0.5 + 0.1 * STEPS)
    group = one_group(tmp_path)
    assert said(curves.against_kl(group))[1] == ["ddpo (1 seed)"]
    assert said(curves.proxy_and_gold(group))[1] == ["base", "best_of_n (1 seed)", "ddpo (1 seed)"]
