"""A policy whose network is a formula: everything but the U-Net is the real one, and the results have closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from overopt_bench.diffusion.network import Network
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.types import Schedule


class Formula(Network):
    """Stands in place of a network.

    Args:
        policy: whose network it replaces.
        function: latents ``[B, C, h, w]`` and timesteps ``[B]`` to the output, and whether the adapter is on.
    """

    def __init__(self, policy: DiffusionPolicy, function: Callable[[Tensor, Tensor, bool], Tensor]) -> None:
        self.__dict__.update(policy.network.__dict__)
        self.function = function

    def __call__(self, latents: Tensor, timesteps: Tensor, context: object, **recompute: bool) -> Tensor:
        self.nfe += len(latents)
        return self.function(latents, timesteps, self.copies.worn is not None)


class FormulaPolicy(DiffusionPolicy):
    """A policy on mini's pipeline with another schedule and a formula for a network; images are the latents' mean."""

    def __init__(self, schedule: Schedule, function: Callable[[Tensor, Tensor, bool], Tensor]) -> None:
        super().__init__(
            get_suite("mini").pipeline(), num_steps=2, guidance_scale=1.0, eta=1.0, lora_rank=1, lora_alpha=1, seed=0,
            schedule=schedule,
        )  # fmt: skip
        self.network = Formula(self, function)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1, keepdim=True).expand(-1, 3, -1, -1)


def prompts(n: int) -> Sequence[str]:
    """n times the same prompt, which no formula reads."""
    return ["fox"] * n
