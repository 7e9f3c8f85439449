"""The mathematics of a sampler: what a network's output means, and the Gaussian of each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from overopt_bench.types.transition import Transition

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Prediction:
    """What a network says that latents are made of.

    Attributes:
        clean: ``[B, C, h, w]`` float32, the estimate of the clean latents x_0.
        noise: ``[B, C, h, w]`` float32, the estimate of the noise epsilon.
    """

    clean: Tensor
    noise: Tensor


class Schedule(Protocol):
    """A sampler's mathematics, the only part of a policy that knows how noise and image are mixed.

    DDIM on a checkpoint's betas is one such object, and flow matching would be another; nothing else changes.
    Training timesteps are what the network is told, 0 to ``num_train_timesteps`` - 1, larger ones noisier.
    """

    @property
    def timesteps(self) -> Tensor:
        """``[T]`` int64, the training timestep of each step in sampling order, on the policy's device."""
        ...

    @property
    def num_train_timesteps(self) -> int:
        """The number of training timesteps."""
        ...

    @property
    def eta(self) -> Tensor:
        """``[T]`` float64 on the CPU, the noise of each step; a step with 0 is deterministic."""
        ...

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Give the coefficients s and n of x_t = s x_0 + n epsilon.

        Args:
            timesteps: ``[B]`` int64, any training timesteps.

        Returns:
            The coefficient of the signal and that of the noise, ``[B, 1, 1, 1]`` each.
        """
        ...

    def predict(self, x: Tensor, output: Tensor, timesteps: Tensor) -> Prediction:
        """Say what latents are made of, given the network's output for them.

        Args:
            x: ``[B, C, h, w]`` latents.
            output: ``[B, C, h, w]``, the network's output at ``x``, guidance included.
            timesteps: ``[B]`` int64, any training timesteps, one a sample.
        """
        ...

    def transition(self, x: Tensor, output: Tensor, steps: Tensor, eta: Tensor | None = None) -> Transition:
        """Give the distribution of x_{i+1} given x_i.

        Args:
            x: ``[B, C, h, w]`` x_i.
            output: ``[B, C, h, w]``, the network's output at ``x``, guidance included.
            steps: ``[B]`` int64, each sample's own step index i in 0..T-1.
            eta: ``[T]`` noise of each step, in place of the schedule's own.

        Raises:
            ValueError: for an ``eta`` of another shape or out of range.
        """
        ...
