"""Evaluates methods that select among base samples instead of training: the estimate over a growing pool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.evaluation.measuring import summary
from overopt_bench.evaluation.scoring import all_scores
from overopt_bench.types import Candidates, Reward, Selection


class SamplePool:
    """A pool of the base samples that a method has drawn: their prompts, proxy and all scores ``[N]``, without images.

    Args:
        rewards: all that are evaluated, by name.
        world: the processes that share the scoring.
        device: where the rewards are.
    """

    def __init__(self, rewards: Mapping[str, Reward], world: World, device: torch.device) -> None:
        self.rewards, self.world, self.device = rewards, world, device
        self.prompts: list[str] = []
        self.proxy = torch.empty(0)
        self.scores: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, found: Candidates) -> None:
        """Ask all rewards about base samples that were just drawn.

        Raises:
            FloatingPointError: where a reward gives something that is not finite.
        """
        images = found.images.to(self.device).float() / 255
        for name, new in all_scores(self.rewards, images, found.prompts, self.world).items():
            self.scores[name] = torch.cat([self.scores.get(name, torch.empty(0)), new.cpu()])
        self.proxy = torch.cat([self.proxy, found.proxy])
        self.prompts += found.prompts

    def evaluate(self, method: Selection) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Estimate every reward of what the method keeps of each training prompt's pool.

        Returns:
            The "eval" row: ``n``, means and standard errors over prompts, and the distance from the base model; and the
            "scores" rows: one in which each prompt has two estimates, over the two halves of its pool, which share no
            image. None of these where half a pool is smaller than ``n``.
        """
        pools = self._pools()
        row: dict[str, Any] = {"n": method.n}
        for name in self.scores:
            estimates = torch.stack([self._estimate(method, name, pool) for pool in pools.values()])
            row |= summary(f"train/{name}", estimates, [*pools])
        return row | distance(method.kl()), self._halves(method, pools)

    def _pools(self) -> dict[str, list[int]]:
        """Places of each prompt's samples, in the order in which they were drawn."""
        pools: dict[str, list[int]] = {}
        for k, prompt in enumerate(self.prompts):
            pools.setdefault(prompt, []).append(k)
        return pools

    def _estimate(self, method: Selection, reward: str, pool: list[int]) -> Tensor:
        """A reward's expectation under the method, over some samples of one prompt."""
        order = self.proxy[pool].sort().indices
        return (method.weights(len(pool)) * self.scores[reward][pool][order]).sum()

    def _halves(self, method: Selection, pools: Mapping[str, list[int]]) -> list[dict[str, Any]]:
        if min(len(pool) // 2 for pool in pools.values()) < method.n:
            return []
        parts = [(prompt, half, pool[half::2]) for prompt, pool in pools.items() for half in (0, 1)]
        scores = {
            name: [round(self._estimate(method, name, part).item(), 6) for *_, part in parts] for name in self.scores
        }
        prompts, index = [prompt for prompt, *_ in parts], [half for _, half, _ in parts]
        return [{"split": "train", "prompts": prompts, "index": index, "scores": scores, "n": method.n}]

    def state_dict(self) -> dict[str, Any]:
        """Return everything, to go on from."""
        return {"prompts": self.prompts, "proxy": self.proxy, "scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.prompts, self.proxy, self.scores = list(state["prompts"]), state["proxy"], dict(state["scores"])


def distance(kl: float) -> dict[str, float]:
    """Name the KL in nats between the images that a method keeps and the base model's, and its root, for the "eval" row.

    It is that of the distribution of images: another quantity than the KL of a policy's chains, which bounds it from above.
    """
    return {"train/image_kl": kl, "train/sqrt_image_kl": kl**0.5}
