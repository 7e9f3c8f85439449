"""Figures of curves: proxy, golds and every metric along the budget and along the distance from the base model.

They draw what was recorded and compute nothing but means over seeds and their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from overopt_bench.report.groups import Group
from overopt_bench.report.layout import Counts, bands, is_proxy, label_x, legend, legend_label, panels_per_proxy
from overopt_bench.report.load import Run
from overopt_bench.report.measured import Measured
from overopt_bench.report.statistics import Array, interval_of_mean

MEANS = "means over seeds at equal evaluations, without an interval"
INTERVAL = "mean over seeds; band: its 95 % interval (Student t), none for 1 seed"
SEEDS = "; faint lines: single seeds"
THIN = "; thin lines, no band: reference records"
IMAGE_KL = "train/sqrt_image_kl"
FAINT = 24  # single seeds in a panel beyond which their lines hide each other and are left out


def seed_curves(runs: list[Run], x: str, y: str) -> tuple[Array, Array]:
    """X and y of each seed at equal evaluation points, ``[seeds, points]`` each, up to where all of them have come."""
    curves = [_pair(run, x, y) for run in runs]
    n = min(len(c[0]) for c in curves)
    xs, ys = (np.stack([c[k][:n] for c in curves]) for k in (0, 1))
    return xs, ys


def _pair(run: Run, x: str, y: str) -> tuple[Array, Array]:
    return run.curve(y) if x == "queries" else run.together(x, y)


def _drawn(part: Group, proxy: str, x: str, y: str) -> dict[str, list[Run]]:
    """The seeds of each algorithm that recorded a line; what stays is one point where x is measured itself."""
    found = {
        label: [run for run in part.of(proxy, label) if len(_pair(run, x, y)[0]) > 1] for label in part.labels(proxy)
    }
    return {label: runs for label, runs in found.items() if runs and (x == "queries" or runs[0].role != "stays")}


def _lines(ax: Axes, group: Group, proxy: str, x: str, y: str, counts: Counts, *, dashed: bool = False) -> None:
    """A line per algorithm, along queries with its interval over seeds; the reference's behind, thin and unmarked."""
    kind = "--" if dashed else "-"
    for label, runs in _drawn(group.reference, proxy, x, y).items() if group.reference else ():
        xs, ys = seed_curves(runs, x, y)
        name = legend_label(f"{label}, reference")
        _count(counts, name, runs)
        ax.plot(xs.mean(0), ys.mean(0), kind, color=group.style(label).colour, linewidth=0.9, alpha=0.8, label=name)
    own = _drawn(group, proxy, x, y)
    intervals = []
    for label, runs in own.items():
        xs, ys = seed_curves(runs, x, y)
        colour, marker = group.style(label)
        name = legend_label(label)
        _count(counts, name, runs)
        ax.plot(
            xs.mean(0), ys.mean(0), kind, color=colour, marker=marker, markersize=4, linewidth=1.8, label=name,
            markevery=max(1, xs.shape[1] // 6),
        )  # fmt: skip
        if x == "queries" and len(runs) > 1 and runs[0].role != "stays":
            intervals.append((xs.mean(0), *interval_of_mean(ys)[1:], colour))
            if _faint(group, own):
                single = np.stack([xs, ys], -1)
                ax.add_collection(LineCollection(list(single), colors=colour, linewidths=0.6, alpha=0.4))
    bands(ax, intervals)


def _count(counts: Counts, name: str, runs: list[Run]) -> None:
    """Note how many seeds a line is of; a policy that stays as it is has none, its evaluations are all the same."""
    if runs[0].role != "stays":
        counts.setdefault(name, set()).add(len(runs))


def _faint(group: Group, own: Mapping[str, list[Run]]) -> bool:
    """Whether single seeds are drawn: not where they are very many, nor where thin lines are the reference's."""
    many = sum(len(runs) for runs in own.values() if runs[0].role != "stays")
    return group.reference is None and many <= FAINT


def _note(group: Group, axes: np.ndarray) -> str:
    """What the lines and bands of a figure are."""
    drawn = {type(artist) for ax in axes.flat for artist in ax.collections}
    faint, interval = LineCollection in drawn, bool(drawn - {LineCollection})
    return (INTERVAL if interval else MEANS) + (SEEDS if faint else "") + (THIN if group.reference else "")


def proxy_and_gold(group: Group) -> Figure:
    """Proxy (above, solid) and golds (below, dashed) against queries, a column per proxy."""
    return _figure(group, "Proxy and gold against queries", lambda proxy: ("queries", "reward queries"))


def gold_against_proxy(group: Group) -> Figure | None:
    """Each path from the base model: right is what is optimised, up is what is wanted."""
    if not group.golds():
        return None
    title = "Gold against proxy"
    return _figure(group, title, lambda proxy: (f"train/{proxy}/mean", f"proxy: {proxy}"), golds_only=True)


def against_kl(group: Group) -> Figure:
    """The picture of Gao et al.: proxy and gold against the distance from the base model."""
    title = "Proxy and gold against distance from the base model"
    return _figure(group, title, lambda proxy: ("train/sqrt_kl", "sqrt(path KL), sqrt(nats)"))


def against_image_kl(group: Group) -> Figure | None:
    """The same for methods that select: against the KL of the images that they keep, which is no chain's.

    None where no run recorded it.
    """
    if not any(len(run.curve(IMAGE_KL)[0]) > 1 for run in group.runs):
        return None
    title = "Proxy and gold against the KL of the kept images"
    return _figure(group, title, lambda proxy: (IMAGE_KL, "sqrt(image KL), sqrt(nats)"))


def _figure(group: Group, title: str, x: Callable[[str], tuple[str, str]], *, golds_only: bool = False) -> Figure:
    """Panels for the proxy (solid) and each gold (dashed), or for the golds alone.

    Args:
        group: what to draw.
        title: of the figure.
        x: gives the metric and the label of a proxy's abscissa.
        golds_only: leaves the proxy's panels out.
    """
    golds = group.golds()
    figure, axes, columns = panels_per_proxy(group, len(golds) + (not golds_only), title)
    counts: Counts = {}
    for proxy, own in columns.items():
        key, axis_label = x(proxy)
        if not golds_only:
            own[0].set_ylabel(f"proxy: {proxy}", fontsize=8)
            _lines(own[0], group, proxy, key, f"train/{proxy}/mean", counts)
        for ax, gold in zip(own[-len(golds) :] if golds else (), golds, strict=True):
            ax.set_ylabel(f"{group.role(gold)}: {gold}", fontsize=8)
            if gold == proxy:
                is_proxy(ax, gold)
            else:
                _lines(ax, group, proxy, key, f"train/{gold}/mean", counts, dashed=True)
        label_x(own, axis_label, len(columns))
    legend(figure, axes, _note(group, axes), counts)
    return figure


def metric(group: Group, shown: Measured) -> Figure:
    """Draw a metric's numbers along the budget, a panel for each, by the names that their metric gives them."""
    figure, axes, columns = panels_per_proxy(group, len(shown.numbers), shown.title)
    counts: Counts = {}
    for proxy, own in columns.items():
        for ax, (key, number) in zip(own, shown.numbers.items(), strict=True):
            heading = [] if number.title == shown.title else [number.title]
            direction = [f"({number.better} is better)"] if number.better else []
            ax.set_ylabel("\n".join([*heading, *filter(None, [number.unit]), *direction]), fontsize=8)
            _lines(ax, group, proxy, "queries", key, counts)
        label_x(own, "reward queries", len(columns))
    legend(figure, axes, _note(group, axes), counts)
    return figure
