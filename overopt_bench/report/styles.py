"""Colours and markers of a page's labels: given out in order of appearance, no two of them equal."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import NamedTuple

GREYS = ("#000000", "#999999")  # for what does not train
# Okabe and Ito's palette, distinct to colour-blind readers, and three colours more
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#B8A800", "#7A4FBF")
REFERENCE_MARKERS = ("x", "P")
MARKERS = ("o", "s", "^", "D", "v", "<", ">", "h", "p", "*", "X")  # keep lines apart in grey; 11, for 8 colours


class Style(NamedTuple):
    """How a label is drawn: a colour such as ``#0072B2``, and matplotlib's name of a marker."""

    colour: str
    marker: str


def assign(labels: Iterable[tuple[str, bool]]) -> Mapping[str, Style]:
    """Give every label a style of its own.

    Args:
        labels: each label in order of appearance, and whether it stands for a method that trains.
    """
    greys = iter([Style(*pair) for pair in zip(GREYS, REFERENCE_MARKERS, strict=True)])
    colours = _colours()
    styles: dict[str, Style] = {}
    for label, trains in labels:
        if label not in styles:
            styles[label] = next(colours) if trains else next(greys, None) or next(colours)
    return styles


def _colours() -> Iterator[Style]:
    """Yield the palette, then hues a golden ratio of the circle apart, in three shades by turns."""
    for k in count():
        if k < len(PALETTE):
            colour = PALETTE[k]
        else:
            red, green, blue = colorsys.hls_to_rgb(k * 0.61803 % 1, (0.35, 0.5, 0.65)[k % 3], 0.6)
            colour = f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
        yield Style(colour, MARKERS[k % len(MARKERS)])
