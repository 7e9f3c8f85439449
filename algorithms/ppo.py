"""What DDPO and TDPO share: the clipped surrogate, per-prompt statistics, and the flat view of an epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from overopt_bench.types import TrainContext

Reduction = Literal["mean", "sum"]


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's pessimistic loss of each transition, for ratios and advantages of one shape (Schulman et al. 2017, eq. 7)."""
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped, clipped)


def reduce_log_prob(log_prob: Tensor, dimensions: int, reduction: Reduction) -> Tensor:
    """Summed log-probabilities as they are, or divided by the latent's dimensions as in the published codes."""
    return log_prob / dimensions if reduction == "mean" else log_prob


def zero_spread_share(rewards: Tensor, prompts: Sequence[str]) -> float:
    """The share of prompts with several samples whose rewards are all equal: those give no gradient."""
    groups = _groups(prompts)
    several = [rewards[rows] for rows in groups.values() if len(rows) > 1]
    return sum(float(r.max() == r.min()) for r in several) / len(several) if several else 0.0


def _groups(prompts: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for k, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(k)
    return groups


def draw_epoch_prompts(ctx: TrainContext, samples: int, group: int) -> list[str]:
    """An epoch's prompts in groups of equal ones; only as many as the budget still holds, the last group cut if need be."""
    samples = min(samples, ctx.budget_left())
    if samples >= group:
        return ctx.draw_prompts(samples - samples % group, group)
    return ctx.draw_prompts(samples, samples)


class PerPromptStats:
    """Running mean and deviation of each prompt's reward (DDPO, section 4.3; ddpo-pytorch ``stat_tracking.py``).

    A first-in-first-out buffer of raw rewards per prompt outlives epochs. Rewards are appended *before* they
    are normalised; a prompt with fewer than ``min_count`` uses the whole batch's mean and deviation.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size, self.min_count = buffer_size, min_count
        self.buffers: dict[str, deque[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Advantages ``[B]`` = (r - mean) / (std + 1e-6), with the population's deviation."""
        advantages = torch.empty_like(rewards)
        for prompt, rows in _groups(prompts).items():
            buffer = self.buffers.setdefault(prompt, deque(maxlen=self.buffer_size))
            buffer.extend(rewards[rows].tolist())
            known = rewards if len(buffer) < self.min_count else torch.tensor(list(buffer), device=rewards.device)
            advantages[rows] = (rewards[rows] - known.mean()) / (known.std(unbiased=False) + 1e-6)
        return advantages

    def state_dict(self) -> dict[str, Any]:
        return {prompt: list(buffer) for prompt, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffers = {prompt: deque(values, maxlen=self.buffer_size) for prompt, values in state.items()}
