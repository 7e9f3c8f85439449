"""DDIM's parameters of one Gaussian step, and what a network's output says a latent is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from overopt_bench.lazy import torch
from overopt_bench.types.schedule import Prediction
from overopt_bench.types.transition import Transition

if TYPE_CHECKING:
    from torch import Tensor

PredictionType = Literal["epsilon", "sample", "v_prediction"]


def clean_and_noise(x: Tensor, output: Tensor, alpha: Tensor, prediction: PredictionType) -> Prediction:
    """Say what x is made of, given the network's output: x = sqrt(alpha) x0 + sqrt(1 - alpha) eps.

    Only a prediction of epsilon needs a division by sqrt(alpha), which is 0 at zero terminal SNR.

    Args:
        x: ``[B, C, h, w]`` latents.
        output: ``[B, C, h, w]``, of the network at x, guided.
        alpha: ``[B]`` alphas_cumprod at x.
        prediction: what the output is: the noise, x_0 or the velocity (Salimans and Ho 2022, appendix D).
    """
    alpha = alpha.view(-1, 1, 1, 1)
    if prediction == "v_prediction":
        return Prediction(
            alpha.sqrt() * x - (1 - alpha).sqrt() * output, (1 - alpha).sqrt() * x + alpha.sqrt() * output
        )
    if prediction == "sample":
        return Prediction(output, (x - alpha.sqrt() * output) / (1 - alpha).sqrt())
    return Prediction((x - (1 - alpha).sqrt() * output) / alpha.sqrt(), output)


def ddim_transition(
    x: Tensor, output: Tensor, alpha: Tensor, alpha_prev: Tensor, eta: float | Tensor,
    prediction: PredictionType = "epsilon", noisy: bool | None = None,
) -> Transition:  # fmt: skip
    """Give DDIM's step (Song et al. 2021, eq. 12 and 16) as a Gaussian, without clipping of x_0.

    Args:
        x: ``[B, C, h, w]`` x_i.
        output: ``[B, C, h, w]``, of the network at x_i, guided; ``prediction`` says what it is.
        alpha: ``[B]`` alphas_cumprod at x_i.
        alpha_prev: ``[B]`` alphas_cumprod at x_{i+1}.
        eta: a number or ``[B]``; 0 is deterministic DDIM, 1 has DDPM's noise.
        prediction: what the output is.
        noisy: whether every eta is known to be above 0; see ``Transition``.
    """
    made_of = clean_and_noise(x, output, alpha, prediction)
    alpha, alpha_prev = alpha.view(-1, 1, 1, 1), alpha_prev.view(-1, 1, 1, 1)
    eta_squared = (eta**2).to(alpha.dtype).view(-1, 1, 1, 1) if isinstance(eta, torch.Tensor) else eta**2
    variance = eta_squared * (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)  # sigma^2, eq. 16
    # with eta = 1 and alpha near 0 the direction's share is 0, which rounding may take below 0
    direction = (1 - alpha_prev - variance).clamp(min=0).sqrt() * made_of.noise
    return Transition(alpha_prev.sqrt() * made_of.clean + direction, variance.sqrt(), noisy)  # eq. 12
