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

    def evaluate(self, method: Selection) -> dict[str, Any]:
        """Return the "eval" row: per reward the weighted mean over each training prompt's pool, and the distance.

        There is one estimate a prompt; means and standard errors are over prompts.
        """
        groups = [[k for k, p in enumerate(self.prompts) if p == prompt] for prompt in dict.fromkeys(self.prompts)]
        row: dict[str, Any] = {"n": method.n}
        for name, scores in self.scores.items():
            estimates = []
            for group in groups:
                order = self.proxy[group].sort().indices
                estimates.append((method.weights(len(group)) * scores[group][order]).sum())
            row |= summary(f"train/{name}", torch.stack(estimates))
        kl = method.kl()
        return row | {
            "train/path_kl/mean": kl,
            "train/path_kl/stderr": 0.0,
            "train/path_kl/count": len(groups),
            "train/sqrt_kl": kl**0.5,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything, to go on from."""
        return {"prompts": self.prompts, "proxy": self.proxy, "scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore ``state_dict``."""
        self.prompts, self.proxy, self.scores = list(state["prompts"]), state["proxy"], dict(state["scores"])
