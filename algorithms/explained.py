"""How much of the returns a critic explains."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """1 - Var(G - V) / Var(G); 0 where the returns have no spread, for there is nothing to explain."""
    spread = returns.var(unbiased=False)
    return (1 - (returns - values).var(unbiased=False) / spread).item() if spread > 1e-12 else 0.0


def explained_by_step(returns: Tensor, values: Tensor) -> list[float]:
    """The explained variance of each denoising step's values among N chains: ``[N, T]`` both, T numbers."""
    return [explained_variance(g, v) for g, v in zip(returns.T, values.T, strict=True)]
