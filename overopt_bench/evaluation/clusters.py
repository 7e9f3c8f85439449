"""Standard errors over prompts: images of one prompt are not independent of each other."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def standard_error(values: Array) -> float:
    """Standard error of the mean of ``[units]``; a twentieth of the time of ``scipy.stats.sem``, the same number.

    It is not a number where there is one unit.
    """
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def numbered(prompts: Sequence[str]) -> NDArray[np.intp]:
    """Number the prompts of images in order of appearance: ``[images]``, from 0."""
    numbers = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
    return np.array([numbers[prompt] for prompt in prompts], np.intp)


def prompt_means(values: ArrayLike, prompts: Sequence[str]) -> Array:
    """Average within each prompt: of values ``[..., images]``, the means ``[..., prompts]`` in order of appearance."""
    means: Array = np.asarray(values, float) @ _shares(tuple(prompts))
    return means


@lru_cache(maxsize=256)
def _shares(prompts: tuple[str, ...]) -> Array:
    """How much each image counts in the mean of each prompt: ``[images, prompts]``. Runs of one suite have the same."""
    which = numbered(prompts)
    members = np.zeros((len(which), int(which.max()) + 1))
    members[np.arange(len(which)), which] = 1
    shares: Array = members / members.sum(0)
    return shares


def units(values: ArrayLike, prompts: Sequence[str]) -> Array:
    """What a standard error is taken over: ``[units]``.

    The means of the prompts; with a single prompt its images, for then nothing is said of other prompts.

    Args:
        values: one for each image ``[images]``.
        prompts: of each image.
    """
    means = prompt_means(values, prompts)
    return means if means.shape[-1] > 1 else np.asarray(values, float)
