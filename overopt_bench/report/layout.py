"""What all figures share: panels, legends, literal text, and how a figure is saved."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure

from overopt_bench.report.escape import file_name
from overopt_bench.report.groups import Group
from overopt_bench.report.statistics import Array

matplotlib.use("Agg")

Counts = dict[str, set[int]]  # by label, of how many seeds or pairs its lines are, panel by panel
ACROSS = 4  # panels beside each other: more cannot be read on a page


@contextmanager
def drawing() -> Iterator[None]:
    """Within it matplotlib draws every text as it is: a ``$`` begins no formula.

    Pictures stay as they are: put together at a page's resolution, they take several times the time and space.
    Its warnings of characters that its font lacks, which become boxes, and of names too long for a panel are not
    passed on to a user's terminal: the page and the tables have the same names in full.
    """
    with matplotlib.rc_context({"text.parse_math": False, "image.composite_image": False}), warnings.catch_warnings():
        for message in ("Glyph .* missing from", "constrained_layout not applied"):
            warnings.filterwarnings("ignore", message=message)
        yield


def panels(rows: int, columns: int, title: str, width: float = 3.3, height: float = 2.7) -> tuple[Figure, np.ndarray]:
    """A titled figure and its axes ``[rows, columns]``, each of ``width`` by ``height`` inches."""
    figure = Figure(figsize=(max(7.0, width * columns), height * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def panels_per_proxy(group: Group, rows: int, title: str) -> tuple[Figure, np.ndarray, dict[str, np.ndarray]]:
    """``rows`` panels for each proxy: a column, ``ACROSS`` of them beside each other; lines of panels for one proxy.

    Returns:
        The figure, all its axes, and each proxy's axes ``[rows]``.
    """
    proxies = group.proxies()
    if len(proxies) == 1:
        lines, across = -(-rows // ACROSS), min(rows, ACROSS)
        heading = f"{title}, trained on {proxies[0]} — {group.title}, training prompts"
        figure, axes = panels(lines, across, heading, 4.2, 3.2)
        for ax in axes.flat[rows:]:
            ax.set_visible(False)
        return figure, axes, {proxies[0]: axes.flat[:rows]}
    blocks, across = -(-len(proxies) // ACROSS), min(ACROSS, len(proxies))
    figure, axes = panels(rows * blocks, across, f"{title} — {group.title}, training prompts")
    column = {p: axes[k // across * rows : (k // across + 1) * rows, k % across] for k, p in enumerate(proxies)}
    for ax in axes[-rows:, len(proxies) - (blocks - 1) * across :].flat:
        ax.set_visible(False)
    for proxy, own in column.items():
        own[0].set_title(f"trained on {proxy}", fontsize=9)
    return figure, axes, column


def label_x(axes: np.ndarray, text: str, proxies: int) -> None:
    """Below the lowest panel of a column, or below every panel where there is one proxy."""
    for ax in axes if proxies == 1 else axes[-1:]:
        ax.set_xlabel(text, fontsize=8)


def is_proxy(ax: Axes, gold: str) -> None:
    """Say in a gold's panel that it is no gold there."""
    ax.set(xticks=[], yticks=[])
    ax.text(0.5, 0.5, f"{gold} is the proxy here", ha="center", transform=ax.transAxes, fontsize=8)


def bands(ax: Axes, shown: Sequence[tuple[Array, Array, Array, str]]) -> None:
    """Fill intervals behind the lines of a panel; what the lines would be squeezed by is cut off at the frame.

    Args:
        ax: the panel, its lines drawn.
        shown: x, low and high ``[points]`` of each interval, and its colour.
    """
    low, high = ax.dataLim.intervaly
    room = 0.5 * (high - low)  # of two seeds an interval is nine times as wide as they are apart
    bottom = max(low - room, min([low, *(float(lower.min()) for _, lower, _, _ in shown)]))
    top = min(high + room, max([high, *(float(upper.max()) for _, _, upper, _ in shown)]))
    for x, lower, upper, colour in shown:
        ax.fill_between(x, lower, upper, color=colour, alpha=0.13, linewidth=0)
    if bottom < top:
        edge = 0.05 * (top - bottom)
        ax.set_ylim(bottom - edge, top + edge)


def legend(figure: Figure, axes: np.ndarray, note: str, counts: Counts | None = None, unit: str = "seed") -> None:
    """One legend for all panels, each label once, with a note above it.

    Args:
        figure: what the legend is below.
        axes: all its panels.
        note: what the lines and bands are.
        counts: of how many units each label's lines are, panel by panel; the legend says so behind the label.
        unit: what is counted.
    """
    found = {label: handle for ax in axes.flat for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    said = {label: f"{label} ({counted(known, unit)})" for label, known in (counts or {}).items()}
    for ax in axes.flat:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handle.set_label(said.get(label, label))
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.2)
        ax.tick_params(labelsize=8)
        ax.locator_params(nbins=4)  # ticks and their labels are more than half of a figure's time
    texts = [said.get(label, label) for label in found]
    widest = 0.55 + 0.06 * max(map(len, texts), default=0)  # inches: the line, then letters of 8 points
    made = figure.legend(
        found.values(),
        texts,
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() // widest))),
        fontsize=8,
        frameon=False,
        title=textwrap.fill(note, int(figure.get_figwidth() / 0.065)),
        title_fontsize=8,
    )
    made.get_title().set_multialignment("center")


def counted(counts: Collection[int], unit: str) -> str:
    """How many, in words: "1 seed", "3 seeds", or "2 to 3 seeds" where panels differ."""
    few, many = min(counts), max(counts)
    return f"{few if few == many else f'{few} to {many}'} {unit}{'' if many == 1 else 's'}"


def legend_label(text: str) -> str:
    """A label that matplotlib puts into its legends: it hides those that begin with an underscore."""
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, folder: Path, name: str) -> Path:
    """Writes PNG and PDF of a figure, laid out once and drawn once for each; returns the PNG's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_name(name)}.png"
    figure.set_dpi(140)
    # not savefig, which draws twice, with a layout each time
    write_png: Callable[[Path], None] = FigureCanvasAgg(figure).print_png
    write_png(path)
    figure.set_layout_engine("none")
    write_pdf: Callable[..., None] = FigureCanvasPdf(figure).print_pdf
    write_pdf(path.with_suffix(".pdf"), metadata={"CreationDate": None})  # equal records make equal files
    return path
