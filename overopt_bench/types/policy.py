"""A diffusion model as a Markov chain, and what it draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor, nn

from overopt_bench.compute.processes import World
from overopt_bench.types.transition import Transition


@dataclass(frozen=True)
class Trajectory:
    """A batch of sampled denoising chains.

    Attributes:
        prompts: the B prompts.
        latents: ``[B, T+1, C, h, w]`` float32; ``latents[:, 0]`` is the initial noise. Detached.
        timesteps: ``[T]`` int64, the scheduler's timesteps in sampling order.
        log_probs: ``[B, T]`` float32 nats, summed over latent dimensions, stored at sampling. Detached.
        images: ``[B, 3, H, W]`` in [0, 1]; carries a graph only when the rollout was differentiable.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    timesteps: Tensor
    log_probs: Tensor
    images: Tensor


class Policy(Protocol):
    """A diffusion model seen as a Markov chain of Gaussian transitions (DDPO, section 4.1)."""

    num_steps: int  # T
    world: World  # the processes that share the work
    dtype: torch.dtype  # of the network passes
    latent_shape: tuple[int, int, int]  # C, h, w
    nfe: int  # U-Net evaluations so far: one per latent and per guidance branch
    device: torch.device

    def rollout(self, prompts: Sequence[str], generator: Generator) -> Trajectory:
        """Draw one image per prompt, without a graph; in micro-batches, shared among processes."""
        ...

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        """Noise of n chains ``[T+1, n, C, h, w]``, drawn chain by chain: the initial latent, then one a step."""
        ...

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False
    ) -> Trajectory:
        """Chains of given noise ``[T+1, B, C, h, w]`` in one pass, with a graph (truncated backpropagation).

        Args:
            grad_from: first step whose prediction keeps its graph; ``images`` is differentiable with respect to the
                trainable parameters. checkpoint: recompute activations in the backward pass instead of storing them.
        """
        ...

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False
    ) -> Transition:
        """p(x_{i+1} | x_i, prompt) under the current weights, with a graph when gradients are enabled.

        Args:
            latents: ``[B, C, h, w]`` x_i. steps: ``[B]`` int64, each sample's own step index i.
            checkpoint: recompute activations in the backward pass instead of storing them.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside this context the adapter is off: the policy is the base model."""
        ...

    def trainable(self) -> list[nn.Parameter]:
        """The float32 parameters that an algorithm may change."""
        ...
