"""The figure of differences to a reference algorithm: seed against the same seed, along the budget.

Runs of one seed share prompts, sampling noise and the initial adapter, so much of what lies between seeds is in both
and cancels: a difference can be plain where the intervals of the two means overlap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt_bench.report.groups import Group
from overopt_bench.report.layout import Counts, bands, is_proxy, label_x, legend, legend_label, panels_per_proxy
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Array, interval_of_mean, paired_by_seed

NOTE = (
    "mean of paired differences (equal seeds; equal queries, interpolated between evaluations); band: its 95 % interval"
    " (Student t)"
)


def paired_curves(runs: Sequence[Run], others: Sequence[Run], key: str) -> tuple[Array, Array]:
    """Subtract the others' curves from those of the runs with the same seed, after equally many queries.

    Args:
        runs: the seeds of one algorithm on a proxy.
        others: those of another one.
        key: the number that is compared. Runs that did not record it have no pair.

    Returns:
        Queries ``[points]``, those of the evaluations of ``runs`` up to what all have spent, and the differences
        ``[pairs, points]``. Between evaluations a curve is interpolated.
    """
    sides = [[run for run in side if len(run.curve(key)[0])] for side in (runs, others)]
    if not all(sides):
        return np.empty(0), np.empty((0, 0))
    spent = [run.curve(key)[0] for side in sides for run in side]
    first, last = max(queries[0] for queries in spent), min(queries[-1] for queries in spent)
    points = spent[0][(first <= spent[0]) & (spent[0] <= last)]
    seeds = [[int(run.config["seed"]) for run in side] for side in sides]
    values = [[np.interp(points, *run.curve(key)) for run in side] for side in sides]
    return points, paired_by_seed(seeds[0], values[0], seeds[1], values[1])


def differences(group: Group) -> Figure | None:
    """Draw how far proxy and golds are from those of the first trained algorithm, a column per proxy.

    Returns:
        The figure; None where no other algorithm that trains has two seeds in common with the first.
    """
    golds, (reference, *others) = group.golds(), group.trained() or [""]
    if not others:
        return None
    title = f"Difference to {reference} at equal seeds"
    figure, axes, columns = panels_per_proxy(group, 1 + len(golds), title)
    counts: Counts = {}
    lacking: dict[str, list[str]] = {}
    for proxy, own in columns.items():
        for k, (ax, reward) in enumerate(zip(own, [proxy, *golds], strict=True)):
            ax.set_ylabel(f"{'proxy' if k == 0 else group.role(reward)}: {reward}", fontsize=8)
            if k and reward == proxy:
                is_proxy(ax, reward)
                continue
            for label in _lines(ax, group, proxy, f"train/{reward}/mean", reference, counts):
                if k == 0 or proxy not in lacking.get(label, ()):
                    lacking.setdefault(label, []).append(proxy if k == 0 else f"{reward} on {proxy}")
        label_x(own, "reward queries", len(columns))
    if not counts:
        return None
    legend(figure, axes, NOTE + _left_out(group, lacking), counts, "pair")
    return figure


def _lines(ax: Axes, group: Group, proxy: str, key: str, reference: str, counts: Counts) -> list[str]:
    """Draw each trained algorithm's differences to the reference; returns those that have fewer than two pairs."""
    ax.axhline(0, color="grey", linewidth=0.8)
    lacking, intervals = [], []
    for label in (label for label in group.trained(proxy) if label != reference):
        points, pairs = paired_curves(group.of(proxy, label), group.of(proxy, reference), key)
        if len(pairs) < 2:
            lacking.append(label)
            continue
        mean, low, high = interval_of_mean(pairs)
        colour, marker = group.style(label)
        name = legend_label(label)
        counts.setdefault(name, set()).add(len(pairs))
        ax.plot(
            points, mean, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name,
            markevery=max(1, len(points) // 6),
        )  # fmt: skip
        intervals.append((points, low, high, colour))
    bands(ax, intervals)
    return lacking


def _left_out(group: Group, lacking: Mapping[str, Sequence[str]]) -> str:
    """Who has no line, and in which panels where it is not all of them."""
    named = []
    for label, where in lacking.items():
        everywhere = where == [proxy for proxy in group.proxies() if group.of(proxy, label)]
        named.append(label if everywhere else f"{label} ({', '.join(where)})")
    return f"; left out for fewer than two seeds in common: {', '.join(named)}" if named else ""
