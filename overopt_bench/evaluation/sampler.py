"""Whatever draws images for prompts, as an evaluation sees it; a policy in training is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

from torch import Tensor

from overopt_bench.diffusion.policy import DiffusionPolicy


class Drawn(NamedTuple):
    """What a sampler made of B prompts: images ``[B, 3, H, W]`` in [0, 1], and the KL of each step ``[B, T]`` or None."""

    images: Tensor
    kl: Tensor | None = None


class Sampler(Protocol):
    """Draws images from given noise: a policy of this package, or anybody's pipeline behind one short method.

    Attributes:
        noise_shape: of one image's noise. A stochastic sampler of T steps takes ``[T+1, C, h, w]``: the initial latent,
            then each step's noise; one that needs nothing but the initial latent takes ``[1, C, h, w]``.
        lacks_kl: why it cannot give the KL to a base model, as a sentence that goes on from "no path KL: "; None where
            it can.
    """

    @property
    def noise_shape(self) -> tuple[int, ...]: ...

    @property
    def lacks_kl(self) -> str | None: ...

    def draw(self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool) -> Drawn:
        """Draw one image for each prompt, without a graph; equal noise and prompts give equal images.

        Args:
            noise: ``[S, B, C, h, w]`` float32 on the CPU, where ``[S, C, h, w]`` is ``noise_shape``.
            prompts: of the B images.
            with_kl: whether the exact KL of each step is asked for; never where ``lacks_kl`` says why not.

        Raises:
            FloatingPointError: for images that are not finite.
        """
        ...


class PolicySampler:
    """Draws with a policy of this package, by the very sampler that trains it; its passes are not counted.

    Args:
        policy: with its current adapter.
        base: draw with the base model instead, which is the policy without its adapter.
    """

    def __init__(self, policy: DiffusionPolicy, *, base: bool = False) -> None:
        self.policy, self.base = policy, base
        self.lacks_kl = "this is the base model" if base else None

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of one chain: ``[T+1, C, h, w]``."""
        return (self.policy.num_steps + 1, *self.policy.latent_shape)

    def draw(self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool) -> Drawn:
        """Draw in micro-batches, shared among processes; see ``Sampler``."""
        nfe = self.policy.nfe
        with self.policy.base() if self.base else nullcontext():
            trajectory, kl = self.policy.sample(noise, prompts, with_kl=with_kl)
        self.policy.nfe = nfe  # evaluation is free
        return Drawn(trajectory.images, kl)
