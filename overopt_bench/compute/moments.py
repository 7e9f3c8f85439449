"""Mean and deviation of rewards, rewards standardised by them (equal ones give exactly 0), and how much a value explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

TIE_UNITS = 4  # differences of this many roundings are what one reward gives for one image in two batches


def moments(values: Tensor, magnitude: float = 0.0) -> tuple[float, float]:
    """Compute the mean and the population's deviation of values, in float64 and about a pivot.

    A float32 mean of equal values is not always that value, and their deviation then is not 0; a small constant in a
    denominator does not help, for the difference is of its own size.

    Args:
        values: ``[N]`` or any other shape, N at least 1.
        magnitude: of the numbers that the values are differences of; 0 where they are none.

    Returns:
        Mean and deviation. The deviation is exactly 0 where all values lie within ``TIE_UNITS`` roundings of their own
        precision, at the size of the largest value or of ``magnitude``.
    """
    pivot = values.flatten()[0]
    distances = values.double() - pivot.double()
    mean = distances.mean()
    tolerance = TIE_UNITS * torch.finfo(values.dtype).eps * max(values.abs().max().item(), magnitude)
    tied = (distances.max() - distances.min()).item() <= tolerance
    deviation = 0.0 if tied else (distances - mean).square().mean().sqrt().item()
    return pivot.item() + mean.item(), deviation


def standardise(values: Tensor, known: Tensor | None = None, epsilon: float = 1e-6, magnitude: float = 0.0) -> Tensor:
    """Standardise values: less the mean, over the deviation plus ``epsilon``, as every advantage normalisation here does.

    Args:
        values: ``[B]`` or any other shape.
        known: what mean and deviation are taken of, for example all rewards that a prompt had lately; the values
            themselves where left out.
        epsilon: what is added to the deviation.
        magnitude: see ``moments``.

    Returns:
        Advantages in the shape and precision of the values; all exactly 0 where ``known`` has no deviation.
    """
    mean, deviation = moments(values if known is None else known, magnitude)
    if deviation == 0:
        return torch.zeros_like(values)
    return ((values.double() - mean) / (deviation + epsilon)).to(values.dtype)


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """1 - Var(G - V) / Var(G); 0 where the returns have no spread, for there is nothing to explain."""
    spread = returns.var(unbiased=False)
    return (1 - (returns - values).var(unbiased=False) / spread).item() if spread > 1e-12 else 0.0


def explained_by_step(returns: Tensor, values: Tensor) -> list[float]:
    """The explained variance of each denoising step's values among N chains: ``[N, T]`` both, T numbers."""
    return [explained_variance(g, v) for g, v in zip(returns.T, values.T, strict=True)]
