"""Whether an algorithm raises a simple reward on the mini suite's own network: signs and seams at once, in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from toy_policy import PROMPTS, context

from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.types import Algorithm

STEPS = 3


class Redness:
    """The red channel's mean less the others': every step of a chain can change it."""

    name, differentiable, left = "redness", True, 10**9

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (images[:, 0] - (images[:, 1] + images[:, 2]) / 2).flatten(1).mean(1)


def climb(cls: type[Algorithm], epochs: int, **params: Any) -> tuple[float, float]:
    """Train for some epochs; the reward's mean before and after, on the same noise and with the suite's sampler."""
    policy: Any = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=STEPS, guidance_scale=1.0, eta=1.0, lora_rank=4, lora_alpha=4, seed=0
    )
    proxy: Any = Redness()
    algorithm = cls(context(policy, proxy=proxy), cls.Params(**params))

    def mean() -> float:
        prompts = [prompt for prompt in PROMPTS for _ in range(16)]
        return proxy(policy.rollout(prompts, torch.Generator().manual_seed(1)).images, prompts).mean().item()

    before = mean()
    for _ in range(epochs):
        algorithm.step()
    return before, mean()
