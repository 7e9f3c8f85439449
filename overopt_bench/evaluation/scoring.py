"""Asking a reward: shared among processes, and refused where its answer is none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.types import Reward


def shared_scores(reward: Reward, images: Tensor, prompts: Sequence[str], world: World) -> Tensor:
    """Scores ``[B]`` of images ``[B, 3, H, W]`` that every process holds; each scores its share."""

    def work(rows: Tensor) -> tuple[Tensor]:
        whole = len(rows) == len(images)
        return (reward(images if whole else images[rows], prompts if whole else [prompts[k] for k in rows.tolist()]),)

    return world.map(work, len(images), len(images))[0]


def checked(scores: Tensor, name: str, prompts: Sequence[str]) -> Tensor:
    """Scores ``[B]`` as they are, or an error that names the reward.

    Raises:
        FloatingPointError: for NaN or infinity, or another shape.
    """
    if scores.shape != (len(prompts),):
        raise FloatingPointError(f"reward {name!r} gave shape {tuple(scores.shape)} for {len(prompts)} images")
    bad = torch.nonzero(~scores.detach().isfinite()).flatten()
    if len(bad):
        k = int(bad[0])
        raise FloatingPointError(
            f"reward {name!r} gave {scores[k].item()} for prompt {prompts[k]!r} ({len(bad)} of {len(prompts)})"
        )
    return scores
