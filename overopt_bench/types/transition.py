"""One Gaussian step of a denoising chain.

All reinforcement learning here, the exact path KL and the differentiable sampler go through this class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """p(x_{i+1} | x_i, prompt) = N(mean, std^2 I).

    Attributes:
        mean: ``[B, C, h, w]`` float32.
        std: ``[B, 1, 1, 1]`` float32; 0 is a deterministic step, which has neither ``log_prob`` nor ``kl``.
        noisy: whether every std is above 0, where whoever made it knows that without waiting for a GPU; None looks
            into ``std`` when it matters.
    """

    mean: Tensor
    std: Tensor
    noisy: bool | None = None

    def sample(self, noise: Tensor) -> Tensor:
        """Draw mean + std * noise.

        Args:
            noise: ``[B, C, h, w]`` ~ N(0, I).
        """
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """Compute log N(x; mean, std^2) in nats, *summed* over the latent's d dimensions.

        The published codes (DDPO, TDPO, trl, Flow-GRPO) take the mean, which is this divided by d.

        Args:
            x: ``[B, C, h, w]`` latents.

        Returns:
            ``[B]`` float32.

        Raises:
            ValueError: where a std is 0.
        """
        self._require_noise("log-probability")
        z = (x - self.mean) / self.std
        return (-0.5 * z**2 - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def kl(self, other: Transition) -> Tensor:
        """Compute KL(self || other) in nats for equal standard deviations, ||mean - mean'||^2 / (2 std^2).

        Both must be of one schedule and eta, so that they share their std.

        Args:
            other: the same step under other weights.

        Returns:
            ``[B]`` float32.

        Raises:
            ValueError: where a std is 0.
        """
        self._require_noise("KL")
        return ((self.mean - other.mean) ** 2 / (2 * self.std**2)).flatten(1).sum(1)

    def _require_noise(self, quantity: str) -> None:
        noisy = bool((self.std > 0).all()) if self.noisy is None else self.noisy
        if not noisy:
            raise ValueError(
                f"a deterministic transition (std 0) has no density, so its {quantity} does not exist; ask only for steps"
                " with eta > 0"
            )
