"""One Gaussian step of a denoising chain.

All reinforcement learning here, the exact path KL and the differentiable sampler go through this class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transition:
    """p(x_{i+1} | x_i, prompt) = N(mean, std^2 I).

    Attributes:
        mean: ``[B, C, h, w]`` float32. std: ``[B, 1, 1, 1]`` float32, > 0 for ``log_prob`` and ``kl``.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + std * noise, noise ``[B, C, h, w]`` ~ N(0, I)."""
        return self.mean + self.std * noise

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std^2) in nats, *summed* over the latent's d dimensions: ``[B]``.

        The published codes (DDPO, TDPO, trl, Flow-GRPO) take the mean, which is this divided by d.

        Raises:
            ValueError: where std is 0 (eta 0 is deterministic and has no density).
        """
        self._require_noise()
        z = (x - self.mean) / self.std
        return (-0.5 * z**2 - torch.log(self.std) - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def kl(self, other: Transition) -> Tensor:
        """KL(self || other) in nats for equal standard deviations: ``[B]``.

        ||mean - mean'||^2 / (2 std^2); eta and schedule are fixed, so both steps share their std.
        """
        self._require_noise()
        return ((self.mean - other.mean) ** 2 / (2 * self.std**2)).flatten(1).sum(1)

    def _require_noise(self) -> None:
        if not bool((self.std > 0).all()):
            raise ValueError("a transition with std 0 has no density; sample with eta > 0")
