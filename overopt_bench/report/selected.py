"""Records of methods that select among base samples, brought to where those of training are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from overopt_bench.evaluation.clusters import prompt_means
from overopt_bench.report.columns import Scored
from overopt_bench.report.peaks import halves

PATH_KL = ("path_kl", "path_kl_without_last_two", "sqrt_kl")  # numbers of a chain, which selection has not


def with_own_distance(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give the "eval" rows of a method that selects without any path KL, and with the KL of its images.

    Older records have the KL of the images, log n - (n-1)/n, under the name of the path KL, which is another quantity.
    """
    found = []
    for row in rows:
        kept = {key: value for key, value in row.items() if "/" not in key or key.split("/")[1] not in PATH_KL}
        if "train/image_kl" not in row and "train/path_kl/mean" in row:
            kept["train/image_kl"], kept["train/sqrt_image_kl"] = row["train/path_kl/mean"], row["train/sqrt_kl"]
        found.append(kept)
    return found


def in_halves(points: Sequence[Scored]) -> list[Scored]:
    """Give the points of one split with two numbers a prompt: the means of each half of its images.

    A pool grows, and its start is an evaluation like any other, so its points have unequally many images; the two halves
    of a prompt share none. Prompts that a point lacks, or has one image of, are left out of all.
    """
    reduced = [_halved(point) for point in points]
    common = [prompt for prompt in reduced[0] if all(prompt in each for each in reduced)] if reduced else []
    prompts = tuple(prompt for prompt in common for _ in (0, 1))
    return [
        Scored(point.queries, prompts, point.rewards, np.concatenate([each[p] for p in common], 1), point.place)
        for point, each in zip(points, reduced, strict=True) if common
    ]  # fmt: skip


def _halved(point: Scored) -> dict[str, np.ndarray]:
    """Each prompt's two means of every reward ``[rewards, 2]``, of prompts that have images in both halves."""
    half = halves(point.prompts)
    means = []
    for which in (0, 1):
        chosen = half == which
        own = [prompt for prompt, is_chosen in zip(point.prompts, chosen, strict=True) if is_chosen]
        names = dict.fromkeys(own)
        values = prompt_means(point.matrix[:, chosen], own) if own else np.empty((len(point.rewards), 0))
        means.append(dict(zip(names, values.T, strict=True)))
    return {prompt: np.stack([means[0][prompt], means[1][prompt]], 1) for prompt in means[0] if prompt in means[1]}
