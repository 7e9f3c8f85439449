"""A run's numbers in columns: read once, without the events that they stood in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overopt_bench.report.statistics import Array

THRESHOLDS = ("0", "0.025", "0.1")  # of dormancy, as records name them
SPLITS = ("train", "heldout")  # whose single images tables and figures read
EXPLAINED = "critic/explained_variance"  # as "train" events have it
NUMBERS = {bool, int, float}  # of JSON
NOWHERE = np.empty(0)


@dataclass(frozen=True)
class Evaluations:
    """What a run's evaluations measured.

    Attributes:
        queries: spent by each evaluation ``[points]``.
        numbers: by its key in the record, a number's queries and values ``[recorded]``, where it was recorded.
    """

    queries: Array
    numbers: Mapping[str, tuple[Array, Array]]


def evaluations(rows: Sequence[Mapping[str, Any]]) -> Evaluations:
    """Put the "eval" events of a run into columns; what is no number was not recorded."""
    queries = np.array([row["queries"] for row in rows], float)
    numbers = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        if {*map(type, values)} <= NUMBERS:
            numbers[key] = queries, np.array(values, float)
        elif any(known := [type(value) in NUMBERS for value in values]):
            numbers[key] = queries[known], np.array([v for v, is_known in zip(values, known, strict=True) if is_known])
    return Evaluations(queries, numbers)


@dataclass(frozen=True, slots=True)
class Place:
    """Where images are, as the record says it: the cells of a grid from ``first`` on, ``columns`` in a line.

    Attributes:
        file: the grid's, relative to the run's folder.
        first: cell of the first image.
        columns: how many cells a line has.
        size: of a cell, in pixels.
    """

    file: str
    first: int
    columns: int
    size: int


@dataclass(frozen=True, slots=True)
class Scored:
    """The images of one split at one evaluation.

    Attributes:
        queries: spent by then.
        prompts: of each image.
        rewards: that scored them.
        matrix: their scores ``[rewards, images]``.
        place: where the images are; None where the record does not say it.
    """

    queries: int
    prompts: tuple[str, ...]
    rewards: tuple[str, ...]
    matrix: Array
    place: Place | None

    def of(self, reward: str) -> Array | None:
        """Give a reward's scores ``[images]``; None where it was not asked."""
        return self.matrix[self.rewards.index(reward)] if reward in self.rewards else None

    def score(self, reward: str, k: int) -> float | None:
        """Image k's score, rounded; None where the reward was not asked or is not finite, which JSON cannot say."""
        scores = self.of(reward)
        return round(float(scores[k]), 3) if scores is not None and math.isfinite(scores[k]) else None


def scored(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Scored]]:
    """Put the "scores" events of a run into matrices, by split; those of splits that nobody reads are left out.

    Raises:
        ValueError: where rewards scored unequally many images, or what is a score is no number.
        KeyError, TypeError, AttributeError: where an event is not as this package writes it.
    """
    found: dict[str, list[Scored]] = {}
    same: dict[tuple[str, ...], tuple[str, ...]] = {}  # most points have the same prompts and rewards
    for row in (row for row in rows if row["split"] in SPLITS):
        prompts, rewards = (same.setdefault(names, names) for names in (tuple(row["prompts"]), tuple(row["scores"])))
        matrix = np.array(list(row["scores"].values()), float).reshape(len(rewards), -1)
        if rewards and matrix.shape[1] != len(prompts):
            raise ValueError(f"{matrix.shape[1]} scores of {len(prompts)} images")
        found.setdefault(row["split"], []).append(Scored(row["queries"], prompts, rewards, matrix, _place(row)))
    return found


def _place(row: Mapping[str, Any]) -> Place | None:
    match row:
        case {"image_file": str(file), "first_cell": int(first), "columns": int(columns), "cell": int(size)}:
            return Place(file, first, columns, size)
    return None


@dataclass(frozen=True)
class Dormant:
    """The dormant neurons of a critic.

    Attributes:
        queries: of each record ``[records]``.
        resets: queries of the records after a reset.
        shares: dormant neurons in per cent ``[records, layers + 1, thresholds]``, those of all layers last.
    """

    queries: Array
    resets: list[float]
    shares: Array


def dormant(rows: Sequence[Mapping[str, Any]]) -> Dormant | None:
    """Put the "critic" events of a run into columns; None where there are none.

    Raises:
        ValueError: where events have unequally many layers.
        KeyError, TypeError, ZeroDivisionError: where an event is not as this package writes it.
    """
    if not rows:
        return None
    parts = [[*row["layers"], row["all"]] for row in rows]
    shares = [[[100 * p["dormant"][t] / p["units"] for t in THRESHOLDS] for p in layers] for layers in parts]
    resets = [row["queries"] for row in rows if row["when"] == "after_reset"]
    return Dormant(np.array([row["queries"] for row in rows], float), resets, np.array(shares, float))


@dataclass(frozen=True)
class Explained:
    """What a critic explained of the returns of each epoch, before it was trained on them.

    Attributes:
        queries: spent by the end of each epoch ``[epochs]``.
        overall: explained variance over all trained steps ``[epochs]``.
        by_step: of each trained denoising step ``[epochs, steps]``.
        before_reset: whether the critic was reset at the end of the epoch ``[epochs]``.
    """

    queries: Array
    overall: Array
    by_step: Array
    before_reset: NDArray[np.bool_]


def explained(rows: Iterable[Mapping[str, Any]], resets: Sequence[float] = ()) -> Explained | None:
    """Put what the "train" events of a run say of its critic into columns; None where they say nothing.

    Args:
        rows: the events; those of versions that did not record single steps say nothing.
        resets: queries at which the critic was reset.

    Raises:
        ValueError, KeyError, TypeError: where an event is not as this package writes it.
    """
    own = [row for row in rows if EXPLAINED in row and f"{EXPLAINED}/step0" in row]
    if not own:
        return None
    steps = sum(key.startswith(f"{EXPLAINED}/step") for key in own[0])
    queries = np.array([row["queries"] for row in own], float)
    return Explained(
        queries, np.array([row[EXPLAINED] for row in own], float),
        np.array([[row[f"{EXPLAINED}/step{k}"] for k in range(steps)] for row in own], float),
        np.isin(queries, resets),
    )  # fmt: skip
