"""What a run's images say of its curve: changes with their errors over prompts, and peaks that are not noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from overopt_bench.evaluation.clusters import Array, numbered, prompt_means, standard_error, units


@dataclass(frozen=True)
class Paired:
    """Mean of differences at the same prompts and noise, and its standard error over prompts.

    The error is not a number where there is one image alone; then nothing is shown.
    """

    mean: float
    error: float

    @property
    def shown(self) -> bool:
        """Whether the difference is above zero by more than two standard errors."""
        return self.mean > 2 * self.error


def paired_difference(after: Array, before: Array, prompts: Sequence[str]) -> Paired:
    """After - before, image by image, averaged within each prompt first.

    Args:
        after: a score for each image ``[images]``.
        before: that of the same prompts and noise ``[images]``.
        prompts: of each image. Images of one prompt are not independent, so the error is that of the mean of the
            prompts' means; with a single prompt it is over its images, and says nothing of other prompts.
    """
    each = units(np.asarray(after, float) - np.asarray(before, float), prompts)
    return Paired(float(each.mean()), standard_error(each))


@dataclass(frozen=True)
class Peak:
    """Where a curve is highest and how high, each located on one half of the images and read on the other.

    Attributes:
        points: the two locations, each found on one half.
        value: height of the peak, read on the images that did not locate it; it can lie below the end.
        end: height of the end, of the same weighting of images.
        rise: peak - start.
        drop: peak - end.
    """

    points: tuple[int, int]
    value: float
    end: float
    rise: Paired
    drop: Paired


def halves(prompts: Sequence[str]) -> Array:
    """Say of each image whether it belongs to the first half (0) or the second (1): ``[images]``.

    The images of one prompt alternate, so that each half has half of the images of each prompt; where a prompt has an odd
    number of them, the next prompt begins with the other half.
    """
    order = np.argsort(numbered(prompts), kind="stable")
    half = np.empty(len(order))
    half[order] = np.arange(len(order)) % 2
    return half


@lru_cache(maxsize=64)
def _locating(prompts: tuple[str, ...]) -> list[tuple[NDArray[np.bool_], tuple[str, ...]]]:
    """Of each half, which images it has ``[images]`` and their prompts. Runs of one suite have the same."""
    chosen = [halves(prompts) == half for half in (0, 1)]
    return [(own, tuple(np.array(prompts, object)[own])) for own in chosen]


def cross_fitted_peak(scores: Array, prompts: Sequence[str]) -> Peak:
    """The peak of mean scores ``[points, images]`` without calling the maximum of noise a peak.

    Halves and prompts go together so: half of the images of each prompt locate the peak and the other half is read
    there, then the reverse, and no image is read where it helped to choose. What was read is averaged within each
    prompt, over both halves, and the standard error is taken over prompts. The halves share their prompts, so a peak is
    that of these prompts, and its error takes the location as given.

    Args:
        scores: a score for each evaluation and image ``[points, images]``, always of the same prompts and noise.
        prompts: of each image.
    """
    read = np.empty(scores.shape[1])
    points = []
    for chosen, own in _locating(tuple(prompts)):
        means = prompt_means(scores[:, chosen], own).mean(1) if own else np.zeros(len(scores))
        top = int(np.where(np.isfinite(means), means, -np.inf).argmax())
        points.append(top)
        read[~chosen] = scores[top, ~chosen]
    first, last = points
    value, end = (float(units(each, prompts).mean()) for each in (read, scores[-1]))
    rise, drop = (paired_difference(read, scores[point], prompts) for point in (0, -1))
    return Peak((first, last), value, end, rise, drop)


def read_at(points: tuple[int, int], scores: Array, prompts: Sequence[str]) -> float:
    """Read other scores ``[points, images]`` at a cross-fitted peak: each half where the other half located it."""
    (_, _), (second, _) = _locating(tuple(prompts))
    read = np.where(second, scores[points[0]], scores[points[1]])
    return float(units(read, prompts).mean())
