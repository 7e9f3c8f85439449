"""Figures that are no curves: pictures at three points, changes of all rewards, dormant neurons."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from overopt_bench.report.filmstrip import Still
from overopt_bench.report.groups import Group
from overopt_bench.report.layout import legend, panels
from overopt_bench.report.statistics import Array

LAYER_LINES = ("-", "--", "-.", ":")


def stills(group: Group, proxy: str, shown: dict[str, list[Still]]) -> Figure:
    """The same prompts and noise at the start, at the peak of each gold and at the end: a row per algorithm."""
    first = next(iter(shown.values()))
    golds, columns = list(first[0].golds), len(first)
    each = len({still.when for still in first})  # columns of one prompt
    figure = Figure(figsize=(1.05 * columns + 1.0, (1.5 + 0.12 * len(golds)) * len(shown) + 0.8), layout="constrained")
    axes = figure.subplots(len(shown), columns, squeeze=False)
    peaks = "".join(f"peak of {gold}, " for gold in golds)
    figure.suptitle(f"Trained on {proxy}: start, {peaks}end — {group.title}; first seed", fontsize=10)
    for row, (label, images) in enumerate(shown.items()):
        for column, (ax, still) in enumerate(zip(axes[row], images, strict=True)):
            ax.imshow(still.image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            lines = [f"proxy {still.proxy:.2f}", *(f"{gold} {value:.2f}" for gold, value in still.golds.items())]
            ax.set_xlabel("\n".join(lines), fontsize=7)
            head = f"{still.prompt}\n" if row == 0 and column % each == each // 2 else ""
            ax.set_title(f"{head}{still.when}\n{still.queries} queries", fontsize=7)
            ax.spines[:].set_visible(False)
        axes[row, 0].set_ylabel(label, fontsize=9, color=group.style(label).colour)
    return figure


def cross_rewards(group: Group, changes: dict[str, tuple[list[str], list[str], Array]]) -> Figure:
    """One heat map per algorithm: trained on (rows), scored by (columns), in base standard deviations."""
    import seaborn as sns

    limit = max([float(np.nanmax(np.abs(values))) for _, _, values in changes.values()] + [0.1])
    rows, columns = (max(len(v[axis]) for v in changes.values()) for axis in (0, 1))
    across = min(2, len(changes))
    figure, axes = panels(
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
    figure, axes = panels(len(thresholds), len(critics), title, 3.4, 2.0)
    for column, run in enumerate(critics):
        events = run.of("critic")
        for row, threshold in enumerate(thresholds):
            ax = axes[row, column]
            for k in range(len(events[0]["layers"]) + 1):
                parts = [e["layers"][k] if k < len(e["layers"]) else e["all"] for e in events]
                share = [100 * p["dormant"][threshold] / p["units"] for p in parts]
                whole = k == len(events[0]["layers"])
                ax.plot(
                    [e["queries"] for e in events], share, LAYER_LINES[k % 4], linewidth=2 if whole else 1,
                    color="black" if whole else group.style(run.label).colour,
                    label="all layers" if whole else f"layer {k + 1} of the critic",
                )  # fmt: skip
            for event in events:
                if event["when"] == "after_reset":
                    ax.axvline(event["queries"], color="grey", linewidth=0.6, alpha=0.6)
            ax.set_title(run.label if row == 0 else "", fontsize=9)
            ax.set_ylabel(f"% with score <= {threshold}" if column == 0 else "", fontsize=8)
        axes[-1, column].set_xlabel("reward queries", fontsize=8)
    legend(figure, axes, "vertical lines: resets, shown before and after")
    return figure
