"""Figures of curves: proxy, golds and every metric along the budget and along the distance from the base model.

They draw what was recorded and compute nothing but means over seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt_bench.report.groups import Group
from overopt_bench.report.layout import label_x, legend, legend_label, panels_per_proxy
from overopt_bench.report.load import Run
from overopt_bench.report.measured import Measured
from overopt_bench.report.statistics import Array

BANDS = "bands: least and greatest seed; without a band: a single seed"
MEANS = "means over seeds at equal queries"
THIN = "; thin lines: reference records"


def seeds_word(runs: list[Run]) -> str:
    """How many seeds, in words that admit a single one."""
    return "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"


def mean_curve(runs: list[Run], x: str, y: str) -> tuple[Array, Array, Array, Array]:
    """X and y of the mean over seeds at equal evaluation points, with y's least and greatest."""
    curves = [_pair(run, x, y) for run in runs]
    n = min(len(c[0]) for c in curves)
    xs, ys = (np.stack([c[k][:n] for c in curves]) for k in (0, 1))
    return xs.mean(0), ys.mean(0), ys.min(0), ys.max(0)


def _pair(run: Run, x: str, y: str) -> tuple[Array, Array]:
    return run.curve(y) if x == "queries" else run.together(x, y)


def _lines(ax: Axes, group: Group, proxy: str, x: str, y: str, *, dashed: bool = False, band: bool = True) -> None:
    """A line per algorithm over the seeds that recorded y; the reference's behind the others, thin and unmarked."""
    for part in (part for part in (group.reference, group) if part is not None):
        thin = part is not group
        for label in part.labels(proxy):
            runs = [run for run in part.of(proxy, label) if len(run.curve(y)[0])]
            if not runs or (x != "queries" and runs[0].role == "stays"):  # the base model is one point of such a plane
                continue
            colour, marker = group.style(label)
            xs, ys, low, high = mean_curve(runs, x, y)
            name = f"{label}, reference" if thin else label
            ax.plot(
                xs, ys, "--" if dashed else "-", color=colour, marker="" if thin else marker, markersize=4,
                markevery=max(1, len(xs) // 6), linewidth=0.9 if thin else 1.8, alpha=0.8 if thin else 1,
                label=legend_label(f"{name} ({seeds_word(runs)})" if len(group.proxies()) == 1 else name),
            )  # fmt: skip
            if band and not thin and len(runs) > 1:
                ax.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def proxy_and_gold(group: Group) -> Figure:
    """Proxy (above, solid) and golds (below, dashed) against queries, a column per proxy."""
    return _figure(group, "Proxy and gold against queries", lambda proxy: ("queries", "reward queries"), BANDS)


def gold_against_proxy(group: Group) -> Figure | None:
    """Each path from the base model: right is what is optimised, up is what is wanted."""
    if not group.golds():
        return None
    return _figure(
        group, "Gold against proxy", lambda proxy: (f"train/{proxy}/mean", f"proxy: {proxy}"), MEANS, golds_only=True
    )


def against_kl(group: Group) -> Figure:
    """The picture of Gao et al.: proxy and gold against the distance from the base model."""
    title = "Proxy and gold against distance from the base model"
    return _figure(group, title, lambda proxy: ("train/sqrt_kl", "sqrt(path KL), sqrt(nats)"), MEANS)


def _figure(
    group: Group, title: str, x: Callable[[str], tuple[str, str]], note: str, *, golds_only: bool = False
) -> Figure:
    """Panels for the proxy (solid) and each gold (dashed), or for the golds alone.

    Args:
        group: what to draw.
        title: of the figure.
        x: gives the metric and the label of a proxy's abscissa.
        note: what the legend says of the lines.
        golds_only: leaves the proxy's panels out.
    """
    golds = group.golds()
    figure, axes, columns = panels_per_proxy(group, len(golds) + (not golds_only), title)
    for proxy, own in columns.items():
        key, axis_label = x(proxy)
        if not golds_only:
            own[0].set_ylabel(f"proxy: {proxy}", fontsize=8)
            _lines(own[0], group, proxy, key, f"train/{proxy}/mean", band=key == "queries")
        for ax, gold in zip(own[-len(golds) :] if golds else (), golds, strict=True):
            ax.set_ylabel(f"{group.role(gold)}: {gold}", fontsize=8)
            if gold == proxy:
                ax.text(0.5, 0.5, f"{gold} is the proxy here", ha="center", transform=ax.transAxes, fontsize=8)
            else:
                _lines(ax, group, proxy, key, f"train/{gold}/mean", dashed=True, band=key == "queries")
        label_x(own, axis_label, len(columns))
    legend(figure, axes, note + (THIN if group.reference else ""))
    return figure


def metric(group: Group, shown: Measured) -> Figure:
    """Draw a metric's numbers along the budget, a panel for each, by the names that their metric gives them."""
    figure, axes, columns = panels_per_proxy(group, len(shown.numbers), shown.title)
    for proxy, own in columns.items():
        for ax, (key, number) in zip(own, shown.numbers.items(), strict=True):
            heading = [] if number.title == shown.title else [number.title]
            direction = [f"({number.better} is better)"] if number.better else []
            ax.set_ylabel("\n".join([*heading, *filter(None, [number.unit]), *direction]), fontsize=8)
            _lines(ax, group, proxy, "queries", key)
        label_x(own, "reward queries", len(columns))
    legend(figure, axes, BANDS + (THIN if group.reference else ""))
    return figure
