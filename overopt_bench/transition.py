"""One Gaussian step of a denoising chain, and DDIM's parameters for it.

All reinforcement learning here, the exact path KL and the differentiable sampler go through this file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["epsilon", "sample", "v_prediction"]


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


def clean_and_noise(x: Tensor, output: Tensor, alpha: Tensor, prediction: Prediction) -> tuple[Tensor, Tensor]:
    """What the network says x is made of: x = sqrt(alpha) x0 + sqrt(1 - alpha) eps.

    Only a prediction of epsilon needs a division by sqrt(alpha), which is 0 at zero terminal SNR.

    Args:
        x: ``[B, C, h, w]``. output: of the network at x, guided, same shape. alpha: ``[B]`` alphas_cumprod at x.
        prediction: what the output is: the noise, x_0 or the velocity (Salimans and Ho 2022, appendix D).

    Returns:
        x0 and eps, both ``[B, C, h, w]``.
    """
    alpha = alpha.view(-1, 1, 1, 1)
    if prediction == "v_prediction":
        return alpha.sqrt() * x - (1 - alpha).sqrt() * output, (1 - alpha).sqrt() * x + alpha.sqrt() * output
    if prediction == "sample":
        return output, (x - alpha.sqrt() * output) / (1 - alpha).sqrt()
    return (x - (1 - alpha).sqrt() * output) / alpha.sqrt(), output


def ddim_transition(
    x: Tensor, output: Tensor, alpha: Tensor, alpha_prev: Tensor, eta: float, prediction: Prediction = "epsilon"
) -> Transition:
    """DDIM's step (Song et al. 2021, eq. 12 and 16) as a Gaussian, without clipping of x_0.

    Args:
        x: ``[B, C, h, w]`` x_i. output: of the network at x_i, guided, same shape; ``prediction`` says what it is.
        alpha: ``[B]`` alphas_cumprod at x_i. alpha_prev: ``[B]`` alphas_cumprod at x_{i+1}.
        eta: 0 is deterministic DDIM, 1 has DDPM's noise.
    """
    x0, eps = clean_and_noise(x, output, alpha, prediction)
    alpha, alpha_prev = alpha.view(-1, 1, 1, 1), alpha_prev.view(-1, 1, 1, 1)
    variance = eta**2 * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    # with eta = 1 and alpha near 0 the direction's share is 0, which rounding may take below 0
    mean = alpha_prev.sqrt() * x0 + (1 - alpha_prev - variance).clamp(min=0).sqrt() * eps
    return Transition(mean, variance.sqrt())
