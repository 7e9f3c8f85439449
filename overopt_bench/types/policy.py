"""A diffusion model as a Markov chain, and what it draws."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from overopt_bench.compute.processes import World
from overopt_bench.lazy import torch
from overopt_bench.types.schedule import Prediction, Schedule
from overopt_bench.types.transition import Transition

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


@dataclass(frozen=True)
class Trajectory:
    """A batch of sampled denoising chains.

    Attributes:
        prompts: the B prompts.
        latents: ``[B, T+1, C, h, w]`` float32; ``latents[:, 0]`` is the initial noise. Detached.
        timesteps: ``[T]`` int64, the schedule's training timesteps in sampling order.
        log_probs: ``[B, T]`` float32 nats, summed over latent dimensions, stored at sampling; NaN at deterministic
            steps, which have no density. Detached.
        images: ``[B, 3, H, W]`` in [0, 1]; carries a graph only when the rollout was differentiable.
        kl: ``[B, T]`` nats, the exact KL of each step to the base model's from the same latents, where it was asked
            for; NaN at deterministic steps. Carries a graph where the step does.
        means: ``[B, T, C, h, w]`` float32, the mean of each step's Gaussian, where it was asked for. Detached.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    timesteps: Tensor
    log_probs: Tensor
    images: Tensor
    kl: Tensor | None = None
    means: Tensor | None = None


class Policy(Protocol):
    """A diffusion model seen as a Markov chain of Gaussian transitions (DDPO, section 4.1).

    Its adapter is what is trained. ``base()`` and ``using()`` put the base model or a kept copy of the adapter in its
    place: inside them every method is that model's. Every pass of the network counts in ``nfe``, whoever's it is.
    """

    num_steps: int  # T
    schedule: Schedule  # the sampler's mathematics
    world: World  # the processes that share the work
    dtype: torch.dtype  # of the network passes
    latent_shape: tuple[int, int, int]  # C, h, w
    nfe: int  # U-Net evaluations so far: one per latent and per guidance branch
    device: torch.device

    def rollout(
        self, prompts: Sequence[str], generator: Generator, *, eta: Tensor | None = None, with_kl: bool = False,
        with_means: bool = False,
    ) -> Trajectory:  # fmt: skip
        """Draw one image per prompt, without a graph; in micro-batches, shared among processes.

        Args:
            prompts: B prompts.
            generator: what the noise is drawn from; the same draws whatever ``eta`` is.
            eta: ``[T]`` noise of each step, in place of the schedule's own; a step with 0 is deterministic.
            with_kl: also give ``kl``, at the price of a pass of the base model a step.
            with_means: also give ``means``, which take as much memory as the latents, and no pass.
        """
        ...

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        """Noise of n chains ``[T+1, n, C, h, w]``, drawn chain by chain: the initial latent, then one a step."""
        ...

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False, with_kl: bool = False
    ) -> Trajectory:
        """Draw chains from given noise in one pass, with a graph (truncated backpropagation).

        Args:
            noise: ``[T+1, B, C, h, w]``, as ``draw_noise`` gives it.
            prompts: B prompts.
            grad_from: first step whose prediction keeps its graph; ``images`` is differentiable with respect to the
                trainable parameters.
            checkpoint: recompute activations in the backward pass instead of storing them.
            with_kl: also give ``kl``, at the price of a pass of the base model a step.
        """
        ...

    def predict(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str], *, checkpoint: bool = False
    ) -> Prediction:
        """Say what latents are made of, with a graph when gradients are enabled.

        Args:
            latents: ``[B, C, h, w]``, any latents, also re-noised ones.
            timesteps: ``[B]`` int64, any training timesteps, one a sample.
            prompts: B prompts.
            checkpoint: recompute activations in the backward pass instead of storing them.
        """
        ...

    def add_noise(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        """Re-noise clean latents to training timesteps, s x_0 + n epsilon.

        Args:
            clean: ``[B, C, h, w]`` x_0.
            timesteps: ``[B]`` int64, any training timesteps, one a sample.
            noise: ``[B, C, h, w]`` epsilon ~ N(0, I).
        """
        ...

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False,
        *, eta: Tensor | None = None,
    ) -> Transition:  # fmt: skip
        """Give p(x_{i+1} | x_i, prompt), with a graph when gradients are enabled.

        Args:
            latents: ``[B, C, h, w]`` x_i.
            steps: ``[B]`` int64, each sample's own step index i.
            prompts: B prompts.
            checkpoint: recompute activations in the backward pass instead of storing them.
            eta: ``[T]`` noise of each step, in place of the schedule's own.
        """
        ...

    def transition_vjp(self, latents: Tensor, steps: Tensor, prompts: Sequence[str], vector: Tensor) -> Tensor:
        """Compute (d mean / d x)^T v of a transition, without gradients of any parameter; in micro-batches.

        Inside ``base()`` this is the step of Adjoint Matching's backward recursion. As with ``transition``, the batch
        is this process's own.

        Args:
            latents: ``[B, C, h, w]`` x_i.
            steps: ``[B]`` int64, each sample's own step index i.
            prompts: B prompts.
            vector: ``[B, C, h, w]`` v.

        Returns:
            ``[B, C, h, w]`` float32.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside this context the adapter is off: the policy is the base model. Contexts nest."""
        ...

    def keep(self, name: str) -> None:
        """Keep a frozen copy of the adapter as it is now, in place of an earlier copy of that name.

        Copies are no parameters, and are saved and resumed with the run.

        Args:
            name: letters, digits and underscores.
        """
        ...

    def using(self, name: str) -> AbstractContextManager[None]:
        """Inside this context the policy is the kept copy of that name. Contexts nest.

        Raises:
            LookupError: where no such copy was kept.
        """
        ...

    def blend(self, name: str, decay: float) -> None:
        """Move a copy towards the adapter as it is now: copy <- decay * copy + (1 - decay) * current.

        Args:
            name: of a kept copy.
            decay: in [0, 1]; 1 changes nothing, 0 is ``keep``.

        Raises:
            LookupError: where no such copy was kept.
        """
        ...

    def trainable(self) -> list[nn.Parameter]:
        """The float32 parameters that an algorithm may change."""
        ...
