"""What temporal critics explained of the returns: the table and the figure.

Explained variance is that of each epoch's returns by the critic as it was before it was trained on them, so it is what the
advantages of that epoch were lessened by. ``overopt-bench ceiling`` says how much there is to explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from overopt_bench.report.cells import Cell
from overopt_bench.report.columns import Explained
from overopt_bench.report.groups import Group
from overopt_bench.report.layout import Counts, bands, label_x, legend, legend_label, panels_per_proxy
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Array, interval_of_mean, over_seeds

NOTE = "mean over seeds of each epoch's explained variance; band: its 95 % interval (Student t), none for 1 seed"


def with_critics(group: Group, proxy: str) -> dict[str, list[Run]]:
    """Find the runs on a proxy whose critic said something, by label."""
    found = {label: [run for run in group.of(proxy, label) if run.explained] for label in group.trained(proxy)}
    return {label: runs for label, runs in found.items() if runs}


def critics_table(group: Group) -> pd.DataFrame:
    """Tabulate explained variance in both halves of the budget, by step in the second, and around resets."""
    rows: list[dict[str, Cell]] = []
    for proxy in group.proxies():
        for label, runs in with_critics(group, proxy).items():
            critics = [run.explained for run in runs if run.explained is not None]
            later = [second_half(one) for one in critics]
            steps = [one.by_step[half].mean(0) for one, half in zip(critics, later, strict=True)]
            resets = [int(one.before_reset.sum()) for one in critics]
            rows.append({
                "proxy": proxy, "algorithm": label, "seeds": len(critics),
                "first half": _mean(critics, lambda one: one.overall[~second_half(one)]),
                "second half": _mean(critics, lambda one: one.overall[second_half(one)]),
                "second half, by step": " ".join(f"{value:.3f}" for value in np.mean(steps, 0)),
                "resets": f"{np.mean(resets):g}",
                "last epoch before a reset": _mean(critics, lambda one: one.overall[one.before_reset])
                if min(resets) else None,
            })  # fmt: skip
    return pd.DataFrame(rows)


def second_half(one: Explained) -> NDArray[np.bool_]:
    """Tell which epochs end in the second half of what was spent ``[epochs]``."""
    later: NDArray[np.bool_] = one.queries > one.queries[-1] / 2
    return later


def _mean(critics: Sequence[Explained], epochs: Callable[[Explained], Array]) -> Cell:
    """The mean over seeds, with its interval, of each seed's mean over some epochs; None where a seed has none."""
    values = [epochs(one) for one in critics]
    return over_seeds(np.array([value.mean() for value in values])) if all(map(len, values)) else None


def explained_variance(group: Group) -> Figure | None:
    """Draw what critics explained along the budget, a panel for each proxy; None where no run has a critic."""
    known = {proxy: found for proxy in group.proxies() if (found := with_critics(group, proxy))}
    if not known:
        return None
    figure, axes, columns = panels_per_proxy(group, 1, "Explained variance of returns")
    counts: Counts = {}
    for proxy, (ax,) in columns.items():
        ax.axhline(0, color="grey", linewidth=0.8)
        ax.set_ylabel("explained variance", fontsize=8)
        intervals = []
        for label, runs in known.get(proxy, {}).items():
            critics = [run.explained for run in runs if run.explained is not None]
            epochs = min(len(one.queries) for one in critics)
            queries, curves = critics[0].queries[:epochs], np.stack([one.overall[:epochs] for one in critics])
            colour, marker = group.style(label)
            name = legend_label(label)
            counts.setdefault(name, set()).add(len(critics))
            ax.plot(queries, curves.mean(0), color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
            if len(critics) > 1:
                intervals.append((queries, *interval_of_mean(curves)[1:], colour))
        bands(ax, intervals)
        label_x(np.array([ax]), "reward queries", len(columns))
    legend(figure, axes, NOTE, counts)
    return figure
