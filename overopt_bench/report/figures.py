"""Figures that are no curves: pictures at three points, changes of all rewards, profiles over proxies, dormant neurons."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from overopt_bench.report.aggregates import moves, profile, repeated, where
from overopt_bench.report.columns import THRESHOLDS
from overopt_bench.report.filmstrip import Still
from overopt_bench.report.groups import Group
from overopt_bench.report.layout import ACROSS, Counts, counted, legend, legend_label, panels
from overopt_bench.report.statistics import Array

PROFILE_NOTE = "runs: every seed on every proxy; band: 95 % interval of a bootstrap over seeds within each proxy"
STILL_WIDTH, STILL_LEFT = 1.05, 0.6  # inches: of a picture and its margin, and left of the first
LAYER_LINES = ("-", "--", "-.", ":")


def stills(group: Group, proxy: str, shown: dict[str, list[Still]]) -> Figure:
    """The same prompts and noise at the start, at the peak of each gold and at the end: a row per algorithm.

    All pictures stand in one axes whose units are inches: axes of their own would take most of a large report's time.
    """
    first = next(iter(shown.values()))
    golds, columns = list(first[0].golds), len(first)
    each = len({still.when for still in first})  # columns of one prompt
    line, side, height = 0.12, STILL_WIDTH - 0.1, 1.5 + 0.12 * len(golds)
    width, total = STILL_WIDTH * columns + STILL_LEFT, height * len(shown) + 0.7
    figure = Figure(figsize=(width, total))
    ax = figure.add_axes((0, 0, 1, 1))
    peaks = "".join(f"peak of {gold}, " for gold in golds)
    title = f"Trained on {proxy}: start, {peaks}end — {group.title}; one seed each"
    ax.text(width / 2, total - 0.1, title, fontsize=10, ha="center", va="top", wrap=True)
    for row, (label, images) in enumerate(shown.items()):
        bottom = total - 0.5 - height * row - 3 * line - side
        for column, still in enumerate(images):
            left = STILL_LEFT + STILL_WIDTH * column
            ax.imshow(still.image, extent=(left, left + side, bottom, bottom + side), interpolation="nearest")
            lines = [f"proxy {still.proxy:.2f}", *(f"{gold} {value:.2f}" for gold, value in still.golds.items())]
            head = f"{still.prompt}\n" if row == 0 and column % each == each // 2 else ""
            above, below = f"{head}{still.when}\n{still.queries} queries", "\n".join(lines)
            ax.text(left + side / 2, bottom + side + 0.03, above, fontsize=7, ha="center", va="bottom")
            ax.text(left + side / 2, bottom - 0.03, below, fontsize=7, ha="center", va="top")
        colour = group.style(label).colour
        ax.text(0.3, bottom + side / 2, label, fontsize=9, color=colour, rotation=90, ha="center", va="center")
    ax.set(xlim=(0, width), ylim=(0, total), aspect="auto")
    ax.set_axis_off()
    return figure


def cross_rewards(group: Group, changes: dict[str, tuple[list[str], list[str], Array]]) -> Figure:
    """One heat map per algorithm: trained on (rows), scored by (columns), in base standard deviations."""
    import seaborn as sns

    limit = max([float(np.nanmax(np.abs(values))) for _, _, values in changes.values()] + [0.1])
    rows, columns = (max(len(v[axis]) for v in changes.values()) for axis in (0, 1))
    across = min(2, len(changes))
    seeds = {len(group.of(proxy, label)) for label, (trained, _, _) in changes.items() for proxy in trained}
    figure, axes = panels(
        -(-len(changes) // across),
        across,
        f"Trained on (rows), scored by (columns) — {group.title}\nend minus start, in standard deviations of the base model's"
        f" images; mean over {counted(seeds, 'seed')}",
        0.55 * columns + 1.2,
        0.4 * rows + 1.2,
    )
    for ax in axes.flat[len(changes) :]:
        ax.set_visible(False)
    for k, (ax, (label, (trained, scored, values))) in enumerate(zip(axes.flat, changes.items(), strict=False)):
        sns.heatmap(values, ax=ax, vmin=-limit, vmax=limit, cmap="PuOr", center=0, annot=True, fmt=".1f", annot_kws={"size": 7},
                    xticklabels=False, yticklabels=False, cbar=k % across == across - 1)  # fmt: skip
        # Seaborn would draw an empty picture of the whole figure for each name, to see which overlap.
        ax.set_xticks(np.arange(len(scored)) + 0.5, scored, rotation="vertical")
        ax.set_yticks(np.arange(len(trained)) + 0.5, trained)
        ax.set_title(label, fontsize=9)
        ax.tick_params(labelsize=7)
    return figure


def performance_profile(group: Group) -> Figure | None:
    """Share of runs that moved a gold by more than tau, over all proxies: a panel per gold, a line per algorithm."""
    found = {gold: moved for gold in group.golds() if (moved := moves(group, gold))}
    if not found:
        return None
    title = f"Performance profiles over proxies — {group.title}, training prompts"
    across = min(ACROSS, len(found))
    figure, axes = panels(-(-len(found) // across), across, title, 4.6, 3.4)
    counts: Counts = {}
    for ax, (gold, cells) in zip(axes.flat, found.items(), strict=False):
        strata = {label: [cell.change for cell in own.values()] for label, own in cells.items()}
        every = np.concatenate([values for own in strata.values() for values in own])
        least, most = min(0.0, np.nanmin(every)), max(0.0, np.nanmax(every))
        taus = np.linspace(least - 0.05 * (most - least), most, 401)
        ax.axvline(0, color="grey", linewidth=0.8)
        for label, own in strata.items():
            share, low, high = profile(own, taus)
            name, colour = legend_label(label), group.style(label).colour
            counts.setdefault(name, set()).add(sum(map(len, own)))
            ax.plot(taus, share, color=colour, linewidth=1.8, label=name, drawstyle="steps-post")
            if repeated(own):
                ax.fill_between(taus, low, high, color=colour, alpha=0.13, linewidth=0, step="post")
        ax.set_ylim(-0.03, 1.03)
        ax.set_ylabel("share of runs above tau", fontsize=8)
        ax.set_xlabel(f"tau: change of {gold}, standard deviations of the base model's images", fontsize=8)
    for ax in axes.flat[len(found) :]:
        ax.set_visible(False)
    legend(figure, axes, f"{PROFILE_NOTE}; {where(group)}", counts, "run")
    return figure


def dormant(group: Group, proxy: str) -> Figure | None:
    """Share of dormant critic neurons over training: a row per threshold, a column per algorithm with a critic."""
    found = [next((r for r in group.of(proxy, label) if r.dormant), None) for label in group.labels(proxy)]
    critics = [(run.label, run.dormant) for run in found if run is not None and run.dormant is not None]
    if not critics:
        return None
    title = f"Dormant critic neurons, trained on {proxy} — {group.title}; first seed"
    figure, axes = panels(len(THRESHOLDS), len(critics), title, 3.4, 2.0)
    for column, (label, recorded) in enumerate(critics):
        layers = recorded.shares.shape[1] - 1
        for row, threshold in enumerate(THRESHOLDS):
            ax = axes[row, column]
            for k in range(layers + 1):
                whole = k == layers
                ax.plot(
                    recorded.queries, recorded.shares[:, k, row], LAYER_LINES[k % 4], linewidth=2 if whole else 1,
                    color="black" if whole else group.style(label).colour,
                    label="all layers" if whole else f"layer {k + 1} of the critic",
                )  # fmt: skip
            for queries in recorded.resets:
                ax.axvline(queries, color="grey", linewidth=0.6, alpha=0.6)
            ax.set_title(label if row == 0 else "", fontsize=9)
            ax.set_ylabel(f"% with score <= {threshold}" if column == 0 else "", fontsize=8)
        axes[-1, column].set_xlabel("reward queries", fontsize=8)
    legend(figure, axes, "vertical lines: resets, shown before and after")
    return figure
