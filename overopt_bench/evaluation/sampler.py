"""Whatever draws images for prompts, as an evaluation sees it; a policy in training is one of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from overopt_bench.diffusion.decoder import refuse_infinite
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.types import Transition

DECODED = (
    32  # rows that a CPU decodes at a time: a fifth faster than 64 on mini, whose activations then stay in its caches
)


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
        self._starts: dict[tuple[int, int, int], tuple[Tensor, Transition]] = {}

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Of one chain: ``[T+1, C, h, w]``."""
        return (self.policy.num_steps + 1, *self.policy.latent_shape)

    @torch.no_grad()
    def draw(self, noise: Tensor, prompts: Sequence[str], *, with_kl: bool) -> Drawn:
        """Draw in micro-batches, shared among processes; see ``Sampler``."""
        policy, nfe = self.policy, self.policy.nfe
        at_base = with_kl and policy.copies.idle()  # at the start of a run the distance is 0, and costs no pass
        measured = with_kl and not at_base

        def work(rows: Tensor) -> tuple[Tensor, ...]:  # keeps nothing of a chain but its end
            own, x, kl = [prompts[k] for k in rows.tolist()], noise[0], []
            start = self._base_start(noise, own, rows) if measured else None
            for link in policy.walk(noise[:, rows].to(policy.device), own, with_kl=measured, start=start):
                x = link.x_next
                kl += [] if link.kl is None else [link.kl]
            return (self._decode(x), *([torch.stack(kl, 1)] if measured else []))

        with policy.base() if self.base else nullcontext():
            images, *columns = policy.world.map(work, len(prompts), policy.micro_batch)
        policy.nfe = nfe  # evaluation is free
        refuse_infinite(images)
        if at_base:
            eta = policy.schedule.eta.to(images)  # a deterministic step has no KL
            columns = [torch.where(eta > 0, 0.0, torch.nan).repeat(len(images), 1)]
        return Drawn(images, columns[0] if with_kl else None)

    def _decode(self, latents: Tensor) -> Tensor:
        """Decode a micro-batch, on a CPU in parts.

        Not those of the base model: rewards are standardised on them, and their last bits would be felt in training.
        """
        rows = DECODED if self.policy.device.type == "cpu" and not self.base else len(latents)
        return torch.cat([self.policy.decode(part) for part in latents.split(rows)])

    def _base_start(self, noise: Tensor, prompts: Sequence[str], rows: Tensor) -> Transition:
        """The base model's first step from a micro-batch of an evaluation's noise: the same every time it is asked for."""
        place = (id(noise), int(rows[0]), len(rows))
        if place not in self._starts:
            with self.policy.base():
                x = noise[0][rows].to(self.policy.device)
                first = self.policy.transition(x, torch.zeros(len(rows), dtype=torch.long, device=x.device), prompts)
            self._starts[place] = (noise, first)  # the noise with it, so that its identity stays its own
        return self._starts[place][1]
