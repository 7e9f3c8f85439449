"""Noisy latents as a temporal critic sees them: decoded as they are, and encoded like any image."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from overopt_bench.encoders.shared import sharing
from overopt_bench.types import Policy

if TYPE_CHECKING:
    from torch import Tensor


def latent_features(
    policy: Policy, latents: Tensor, micro_batch: int, *encoders: Callable[[Tensor], Tensor]
) -> tuple[Tensor, ...]:
    """Encode decoded latents, through uint8 as in TDPO's published code; shared among processes.

    Args:
        policy: decodes the latents.
        latents: ``[N, T, C, h, w]``.
        micro_batch: latents that are decoded in one pass.
        encoders: images ``[B, 3, H, W]`` in [0, 1] to features ``[B, D]``; what several compute alike is computed once.

    Returns:
        Features ``[N, T, D]`` float32 of each encoder.
    """
    flat = latents.flatten(0, 1)  # [N T, C, h, w]

    def work(rows: Tensor) -> tuple[Tensor, ...]:
        images = (policy.decode(flat[rows]) * 255).round() / 255
        with sharing():
            return tuple(encoder(images).float() for encoder in encoders)

    found = policy.world.map(work, len(flat), micro_batch)
    return tuple(features.view(*latents.shape[:2], -1) for features in found)
