"""Asking a reward: shared among processes, and refused where its answer is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.encoders.shared import sharing
from overopt_bench.types import Reward


def all_scores(
    rewards: Mapping[str, Reward], images: Tensor, prompts: Sequence[str], world: World
) -> dict[str, Tensor]:
    """Ask rewards about images that every process holds; each scores its share, an encoder that several have runs once.

    Args:
        rewards: by name.
        images: ``[B, 3, H, W]`` in [0, 1], without a graph.
        prompts: B prompts.
        world: the processes that share the work.

    Returns:
        Scores ``[B]`` by the reward's name.

    Raises:
        FloatingPointError: where a reward gives something that is not finite.
    """
    if not rewards:
        return {}

    def work(rows: Tensor) -> tuple[Tensor, ...]:
        whole = len(rows) == len(images)
        own, own_prompts = (images, prompts) if whole else (images[rows], [prompts[k] for k in rows.tolist()])
        found = []
        with sharing():
            for reward in rewards.values():
                world.check_stop()
                found.append(reward(own, own_prompts))
        return tuple(found)

    columns = world.map(work, len(images), len(images))
    return {name: checked(column, name, prompts) for name, column in zip(rewards, columns, strict=True)}


def checked(scores: Tensor, name: str, prompts: Sequence[str]) -> Tensor:
    """Scores ``[B]`` as they are, or an error that names the reward.

    Raises:
        FloatingPointError: for NaN or infinity, or another shape.
    """
    if scores.shape != (len(prompts),):
        raise FloatingPointError(f"reward {name!r} gave shape {tuple(scores.shape)} for {len(prompts)} images")
    bad = torch.nonzero(~scores.detach().isfinite()).flatten()
    if len(bad):
        k = int(bad[0])
        raise FloatingPointError(
            f"reward {name!r} gave {scores[k].item()} for prompt {prompts[k]!r} ({len(bad)} of {len(prompts)})"
        )
    return scores
