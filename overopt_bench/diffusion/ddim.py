"""DDIM's parameters of one Gaussian step, and what a network's output says a latent is made of."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from overopt_bench.types.transition import Transition

Prediction = Literal["epsilon", "sample", "v_prediction"]


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
