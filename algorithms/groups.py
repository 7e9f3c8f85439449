"""Advantages relative to a group: the images of one prompt are each other's baseline (GRPO, NFT)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from overopt_bench.compute.moments import moments
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Scale = Literal["group", "batch", "none"]


def group_advantages(rewards: Tensor, size: int, scale: Scale) -> Tensor:
    """Subtract each group's mean reward, and divide by a deviation.

    Nothing outlives the call, so that a group is compared with itself alone: rewards remembered from earlier policies,
    or of another group of the same prompt, would shift its advantages.

    Args:
        rewards: ``[P K]``, the K images of a prompt in a row.
        size: K, the images of one group.
        scale: what a group's differences are divided by. ``group``: its own unbiased deviation + 1e-8 (DanceGRPO's
            code). ``batch``: the population's deviation of all rewards + 1e-4 (the code of Flow-GRPO and DiffusionNFT).
            ``none``: 1 (Dr. GRPO, arXiv 2503.20783), so that a group counts by how far its rewards are apart.

    Returns:
        ``[P K]``; all exactly 0 in a group whose rewards are equal up to rounding, or that is one image.
    """
    everywhere = moments(rewards)[1]
    advantages = torch.zeros_like(rewards)
    for rows in torch.arange(len(rewards)).split(size):
        mean, deviation = moments(rewards[rows])
        if deviation == 0:
            continue  # a tie has no better image; dividing rounding errors by each other would make one
        unbiased = deviation * (len(rows) / (len(rows) - 1)) ** 0.5
        divisor = {"group": unbiased + 1e-8, "batch": everywhere + 1e-4, "none": 1.0}[scale]
        advantages[rows] = ((rewards[rows].double() - mean) / divisor).to(rewards.dtype)
    return advantages
