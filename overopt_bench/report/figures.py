"""The figures. They draw what ``stats`` and ``tables`` computed and compute nothing themselves but means over seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from overopt_bench.report.filmstrip import Still
from overopt_bench.report.load import Group, Run
from overopt_bench.stats import Array

matplotlib.use("Agg")

# Okabe and Ito's palette: distinct to colour-blind readers; markers keep the lines apart in grey.
STYLE = {
    "base": ("#000000", "x"), "best_of_n": ("#999999", "P"), "ddpo": ("#0072B2", "o"), "alignprop": ("#E69F00", "s"),
    "tdpo": ("#009E73", "^"), "tdpo_r": ("#D55E00", "D"),
}  # fmt: skip
EXTRA = (("#CC79A7", "v"), ("#56B4E9", "<"), ("#B8A800", ">"), ("#7A4FBF", "h"))
ACROSS = 4  # proxies beside each other: more cannot be read on a page
LAYER_LINES = ("-", "--", "-.", ":")


def style(label: str) -> tuple[str, str]:
    """Colour and marker of an algorithm, the same in every figure and page of every report."""
    return STYLE.get(label) or EXTRA[sum(label.encode()) % len(EXTRA)]


def seeds_word(runs: list[Run]) -> str:
    """How many seeds, in words that admit a single one."""
    return "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"


def mean_curve(runs: list[Run], x: str, y: str) -> tuple[Array, Array, Array, Array]:
    """x and y of the mean over seeds at equal evaluation points, with y's least and greatest."""
    curves = [_pair(run, x, y) for run in runs]
    n = min(len(c[0]) for c in curves)
    xs, ys = (np.stack([c[k][:n] for c in curves]) for k in (0, 1))
    return xs.mean(0), ys.mean(0), ys.min(0), ys.max(0)


def _pair(run: Run, x: str, y: str) -> tuple[Array, Array]:
    queries, values = run.curve(y)
    if x == "queries":
        return queries, values
    others = dict(zip(*run.curve(x), strict=True))
    keep = [k for k, q in enumerate(queries) if q in others]
    return np.array([others[queries[k]] for k in keep]), values[keep]


def _line(
    ax: Axes, runs: list[Run], x: str, y: str, *, dashed: bool = False, label: str | None = None, band: bool = True
) -> None:
    colour, marker = style(runs[0].label)
    xs, ys, low, high = mean_curve(runs, x, y)
    every = max(1, len(xs) // 6)
    ax.plot(
        xs,
        ys,
        "--" if dashed else "-",
        color=colour,
        marker=marker,
        markevery=every,
        markersize=4,
        linewidth=1.5,
        label=label,
    )
    if band and len(runs) > 1:
        ax.fill_between(xs, low, high, color=colour, alpha=0.15, linewidth=0)


def _panels(rows: int, columns: int, title: str, width: float = 3.3, height: float = 2.7) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(max(7.0, width * columns), height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def _per_proxy(group: Group, rows: int, title: str) -> tuple[Figure, np.ndarray, dict[str, np.ndarray]]:
    """``rows`` panels for each proxy: a column, ``ACROSS`` of them beside each other; a row where there is one proxy."""
    proxies = group.proxies()
    if len(proxies) == 1:
        figure, axes = _panels(1, rows, f"{title}, trained on {proxies[0]} — {group.title}, training prompts", 4.2, 3.2)
        return figure, axes, {proxies[0]: axes[0]}
    blocks, across = -(-len(proxies) // ACROSS), min(ACROSS, len(proxies))
    figure, axes = _panels(rows * blocks, across, f"{title} — {group.title}, training prompts")
    column = {p: axes[k // across * rows : (k // across + 1) * rows, k % across] for k, p in enumerate(proxies)}
    for ax in axes[-rows:, len(proxies) - (blocks - 1) * across :].flat:
        ax.set_visible(False)
    for proxy, panels in column.items():
        panels[0].set_title(f"trained on {proxy}", fontsize=9)
    return figure, axes, column


def _label_x(panels: np.ndarray, text: str, proxies: int) -> None:
    """Below the lowest panel of a column, or below every panel of a row."""
    for ax in panels if proxies == 1 else panels[-1:]:
        ax.set_xlabel(text, fontsize=8)


def _legend(figure: Figure, axes: np.ndarray, note: str) -> None:
    found = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        ax.tick_params(labelsize=8)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() // 1.7))),
        fontsize=8,
        frameon=False,
        title=note,
        title_fontsize=8,
    )


BANDS = "bands: least and greatest seed; without a band: a single seed"


def proxy_and_gold(group: Group) -> Figure:
    """Proxy (above, solid) and gold (below, dashed) against queries, a column per proxy."""
    figure, axes, columns = _per_proxy(group, 2, "Proxy and gold against queries")
    for proxy, panels in columns.items():
        for row, (reward, dashed) in enumerate(((proxy, False), (group.gold, True))):
            ax = panels[row]
            for label in group.labels(proxy):
                runs = group.of(proxy, label)
                _line(
                    ax,
                    runs,
                    "queries",
                    f"train/{reward}/mean",
                    dashed=dashed,
                    label=f"{label} ({seeds_word(runs)})" if len(columns) == 1 else label,
                )
            ax.set_ylabel(f"proxy: {proxy}" if row == 0 else f"gold: {group.gold}", fontsize=8)
        _label_x(panels, "reward queries", len(columns))
    _legend(figure, axes, BANDS)
    return figure


def gold_against_proxy(group: Group) -> Figure:
    """Each path from the base model: right is what is optimised, up is what is wanted."""
    return _one_row(
        group, "Gold against proxy", lambda proxy: f"train/{proxy}/mean", lambda proxy: f"proxy: {proxy}", ["gold"]
    )


def against_kl(group: Group) -> Figure:
    """The picture of Gao et al.: proxy and gold against the distance from the base model."""
    return _one_row(
        group,
        "Proxy and gold against distance from the base model",
        lambda proxy: "train/sqrt_kl",
        lambda proxy: "sqrt(path KL), sqrt(nats)",
        ["proxy", "gold"],
    )


def _one_row(
    group: Group, title: str, x: Callable[[str], str], x_label: Callable[[str], str], what: list[str]
) -> Figure:
    figure, axes, columns = _per_proxy(group, len(what), title)
    for proxy, panels in columns.items():
        for row, kind in enumerate(what):
            reward, ax = (proxy if kind == "proxy" else group.gold), panels[row]
            for label in group.labels(proxy):
                if label != "base":
                    _line(
                        ax,
                        group.of(proxy, label),
                        x(proxy),
                        f"train/{reward}/mean",
                        dashed=kind == "gold",
                        label=label,
                        band=False,
                    )
            ax.set_ylabel(f"{kind}: {reward}", fontsize=8)
        _label_x(panels, x_label(proxy), len(columns))
    _legend(figure, axes, "means over seeds at equal queries")
    return figure


def diversity(group: Group) -> Figure:
    """How unlike the images of one prompt still are."""
    figure, axes, columns = _per_proxy(group, 1, "Diversity within a prompt")
    for proxy, (ax,) in columns.items():
        for label in group.labels(proxy):
            runs = [run for run in group.of(proxy, label) if len(run.curve("train/diversity")[0]) > 1]
            if runs:
                _line(ax, runs, "queries", "train/diversity", label=label)
        ax.set_xlabel("reward queries", fontsize=8)
    for ax in axes[:, 0]:
        ax.set_ylabel("mean pairwise CLIP cosine distance", fontsize=8)
    _legend(figure, axes, BANDS)
    return figure


def stills(group: Group, proxy: str, shown: dict[str, list[Still]]) -> Figure:
    """The same prompts and noise at the start, at the peak of gold and at the end: a row per algorithm."""
    columns = max(map(len, shown.values()))
    figure = Figure(figsize=(0.95 * columns + 1.0, 1.3 * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    figure.suptitle(f"Trained on {proxy}: start, peak of {group.gold} and end — {group.title}; first seed", fontsize=10)
    for row, (label, images) in enumerate(shown.items()):
        for ax, still in zip(axes[row], images, strict=True):
            ax.imshow(still.image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(f"proxy {still.proxy:.2f}\ngold {still.gold:.2f}", fontsize=7)
            head = f"{still.prompt}\n" if still.when == "peak" and row == 0 else ""
            ax.set_title(f"{head}{still.when}, {still.queries}", fontsize=7)
            ax.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(label, fontsize=9, color=style(label)[0])
    return figure


def cross_rewards(group: Group, changes: dict[str, tuple[list[str], list[str], Array]]) -> Figure:
    """One heat map per algorithm: trained on (rows), scored by (columns), in base standard deviations."""
    import seaborn as sns

    limit = max([float(np.nanmax(np.abs(values))) for _, _, values in changes.values()] + [0.1])
    rows, columns = (max(len(v[axis]) for v in changes.values()) for axis in (0, 1))
    across = min(2, len(changes))
    figure, axes = _panels(
        -(-len(changes) // across),
        across,
        f"Trained on (rows), scored by (columns) — {group.title}\nend minus start, in standard deviations of the base model's images",
        0.55 * columns + 1.2,
        0.4 * rows + 1.2,
    )
    for ax in axes.flat[len(changes) :]:
        ax.set_visible(False)
    for k, (ax, (label, (trained, scored, values))) in enumerate(zip(axes.flat, changes.items(), strict=False)):
        sns.heatmap(values, ax=ax, vmin=-limit, vmax=limit, cmap="PuOr", center=0, annot=True, fmt=".1f", annot_kws={"size": 7},
                    xticklabels=scored, yticklabels=trained, cbar=k % across == across - 1)  # fmt: skip
        ax.set_title(label, fontsize=9)
        ax.tick_params(labelsize=7)
    return figure


def dormant(group: Group, proxy: str) -> Figure | None:
    """Share of dormant critic neurons over training: a row per threshold, a column per algorithm with a critic."""
    runs = [next((r for r in group.of(proxy, label) if r.of("critic")), None) for label in group.labels(proxy)]
    critics = [run for run in runs if run is not None]
    if not critics:
        return None
    thresholds = ("0", "0.025", "0.1")
    title = f"Dormant critic neurons, trained on {proxy} — {group.title}; first seed"
    figure, axes = _panels(len(thresholds), len(critics), title, 3.4, 2.0)
    for column, run in enumerate(critics):
        events = run.of("critic")
        for row, threshold in enumerate(thresholds):
            ax = axes[row, column]
            for k in range(len(events[0]["layers"]) + 1):
                parts = [e["layers"][k] if k < len(e["layers"]) else e["all"] for e in events]
                share = [100 * p["dormant"][threshold] / p["units"] for p in parts]
                whole = k == len(events[0]["layers"])
                ax.plot([e["queries"] for e in events], share, LAYER_LINES[k % 4], color="black" if whole else style(run.label)[0],
                        linewidth=2 if whole else 1, label="all layers" if whole else f"layer {k + 1} of the critic")  # fmt: skip
            for event in events:
                if event["when"] == "after_reset":
                    ax.axvline(event["queries"], color="grey", linewidth=0.6, alpha=0.6)
            ax.set_title(run.label if row == 0 else "", fontsize=9)
            ax.set_ylabel(f"% with score <= {threshold}" if column == 0 else "", fontsize=8)
        axes[-1, column].set_xlabel("reward queries", fontsize=8)
    _legend(figure, axes, "vertical lines: resets, shown before and after")
    return figure


def save(figure: Figure, folder: Path, name: str) -> Path:
    """PNG and PDF; returns the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.pdf")
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=140)
    return path
