"""What DDPO, TDPO and GRPO share: parameters, the clipped surrogate and its update, and per-prompt statistics."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationInfo, field_validator

from overopt_bench.compute.moments import moments, standardise
from overopt_bench.lazy import torch
from overopt_bench.types import AlgorithmParams, TrainContext, Trajectory, Transition, TransitionRows

if TYPE_CHECKING:
    from torch import Generator, Tensor

Reduction = Literal["mean", "sum"]


class SurrogateParams(AlgorithmParams):
    """What every algorithm with a clipped ratio sets; equal in ddpo-pytorch's ``dgx:aesthetic`` and in the tdpo code."""

    samples_per_epoch: int = Field(256, ge=1, description="images sampled per epoch [both codes, over 8 GPUs]")
    images_per_prompt: int = Field(1, ge=1, description="1 draws prompts i.i.d. [both codes]; more draws groups")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay [both codes]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip [both codes]")
    clip_range: float = Field(
        1e-4, gt=0, description="PPO clip of the ratio, in units of log_prob_reduction [both codes]"
    )
    log_prob_reduction: Reduction = Field(
        "mean", description="log-probability over latent dimensions: mean [both codes] or sum, the true ratio [papers]"
    )
    ratio: Literal["plain", "guard"] = Field(
        "plain", description="the importance ratio [both codes], or the recentred and scaled one of GRPO-Guard"
    )
    skip_last_steps: int = Field(
        0,
        ge=0,
        description="last denoising steps left out of the loss: with few steps they are nearly deterministic and"
        " their score is noise [0 in both codes; 1 in Flow-GRPO]",
    )

    def trained_steps(self, num_steps: int) -> int:
        """Return how many of T denoising steps, from the noisiest on, enter the loss; at least one."""
        return max(1, num_steps - self.skip_last_steps)


class PPOParams(SurrogateParams):
    """Parameters of DDPO and TDPO, whose rewards are normalised by prompt."""

    stats_min_count: int = Field(16, ge=1, description="with fewer than this: the batch's statistics [both codes]")
    stats_buffer: int = Field(32, ge=1, validate_default=True, description="rewards remembered per prompt [both codes]")

    @field_validator("stats_buffer")
    @classmethod
    def _buffer_can_fill(cls, buffer: int, info: ValidationInfo) -> int:
        needed = info.data.get("stats_min_count", buffer)
        if buffer < needed:
            raise ValueError(f"per-prompt statistics would never be used; must be at least stats_min_count={needed}")
        return buffer


class PolicyUpdater:
    """The policy's optimizer and its steps on batches of single transitions."""

    METRICS = ("loss", "ratio/mean", "clipfrac", "approx_kl", "grad_norm")
    TRUST = ("clipfrac", "approx_kl")  # how far the policy is from the one that sampled, also by update and by step

    def __init__(self, ctx: TrainContext, params: SurrogateParams, lr: float, estimator: str = "importance") -> None:
        self.policy, self.params, self.estimator = ctx.policy, params, estimator
        self.micro_batch, self.checkpoint, self.mitigations = ctx.micro_batch, ctx.checkpoint, ctx.mitigations
        self.optimizer = ctx.policy_optimizer(lr, params.weight_decay, params.max_grad_norm)
        self.dimensions = math.prod(ctx.policy.latent_shape)
        self._forget()

    def _forget(self) -> None:
        self._rows: list[list[float]] = []  # METRICS of each update
        self._by_step = torch.zeros(len(self.TRUST), self.policy.num_steps)  # their sums over transitions of a step
        self._counts = torch.zeros(self.policy.num_steps, dtype=torch.long)  # transitions of a step

    @property
    def trained_steps(self) -> int:
        """How many of the T steps, from the noisiest on, enter the loss; at least one."""
        return self.params.trained_steps(self.policy.num_steps)

    def reduce(self, log_probs: Tensor) -> Tensor:
        """Summed log-probabilities as they are, or divided by the latent's dimensions as in the published codes."""
        return log_probs / self.dimensions if self.params.log_prob_reduction == "mean" else log_probs

    def step(
        self, latents: Tensor, sample: Tensor, step: Tensor, prompts: Sequence[str], log_probs_old: Tensor, advantages: Tensor,
        *, eta: Tensor | None = None, means_old: Tensor | None = None,
    ) -> list[float]:  # fmt: skip
        """Take one optimizer step on M transitions and return the values of ``METRICS``.

        Args:
            latents: ``[N, T+1, C, h, w]`` of whole chains, of which no more than a micro-batch is copied at once.
            sample: ``[M]`` int64, each transition's chain.
            step: ``[M]`` int64, each transition's own step i, from x_i to x_{i+1}.
            prompts: the M prompts.
            log_probs_old: ``[M]`` as stored at sampling, summed over dimensions, in nats.
            advantages: ``[M]``.
            eta: ``[T]`` noise of each step at sampling, where it was not the schedule's own.
            means_old: ``[N, T, C, h, w]`` as stored at sampling, for GRPO-Guard's ratio; the plain one without.
        """
        total, sums, world = len(sample), torch.zeros(4, device=latents.device), self.policy.world
        by_step = torch.zeros_like(self._by_step, device=latents.device)  # [2, T]
        for part in world.parts(total, self.micro_batch):
            own_prompts = [prompts[k] for k in part.tolist()]
            x, x_next = latents[sample[part], step[part]], latents[sample[part], step[part] + 1]  # [m, C, h, w]
            transition = self.policy.transition(x, step[part], own_prompts, self.checkpoint, eta=eta)
            log_probs = self.reduce(transition.log_prob(x_next))
            if means_old is None:
                log_ratio = log_probs - self.reduce(log_probs_old[part])  # [m]
            else:
                log_ratio = self.reduce(guarded_log_ratio(transition, x_next, means_old[sample[part], step[part]]))
            ratio = log_ratio.exp()
            if self.estimator == "importance":  # DDPO-IS [paper, section 4.3]: max(-A rho, -A clip(rho, 1 -+ e))
                loss = clipped_surrogate(ratio, advantages[part], self.params.clip_range)
            else:  # DDPO-SF [paper, section 4.3]: the gradient of log p(x_{i+1} | x_i), weighted by A
                loss = -advantages[part] * log_probs
            rows = TransitionRows(self.policy, transition, x, step[part], own_prompts, eta)
            # divided as the log-probabilities are, so that a nat weighs the same against an advantage
            loss = loss + self.reduce(self.mitigations.penalty(rows))
            self.optimizer.backward_part(loss.sum() / total)
            with torch.no_grad():
                clipped = ((ratio - 1).abs() > self.params.clip_range).float()
                approx_kl = log_ratio.expm1() - log_ratio
                sums += torch.stack([v.sum() for v in (loss, ratio, clipped, approx_kl)])
                by_step.index_add_(1, step[part].to(by_step.device), torch.stack([clipped, approx_kl]).to(by_step))
        grad_norm = self.optimizer.step()
        seen = world.sum(torch.cat([sums, by_step.flatten()]).cpu())
        self._rows.append([*(seen[:4] / total).tolist(), grad_norm])
        self._by_step += seen[4:].view_as(by_step)
        self._counts += torch.bincount(step.cpu(), minlength=len(self._counts))
        return self._rows[-1]

    def take_summary(self) -> dict[str, float]:
        """Sum up the updates since the last call for the record.

        Returns:
            The means of ``METRICS`` over updates, and how many updates there were; ``TRUST`` of the first update, before
            which nothing has changed, so that what it clips is rounding alone, and of the last; and ``TRUST`` by
            denoising step, over the transitions of all updates.
        """
        rows = [dict(zip(self.METRICS, row, strict=True)) for row in self._rows]
        means = dict(zip(self.METRICS, torch.tensor(self._rows).mean(0).tolist(), strict=True))
        ends = {
            f"{name}/{when}": row[name] for name in self.TRUST for when, row in (("first", rows[0]), ("last", rows[-1]))
        }
        by_step = {
            f"{name}/step{k}": (sums[k] / self._counts[k]).item()
            for name, sums in zip(self.TRUST, self._by_step, strict=True)
            for k in self._counts.nonzero().flatten().tolist()
        }
        self._forget()
        return {**means, **ends, **by_step, "optimizer_steps": len(rows)}


def chain_batches(samples: int, steps: Tensor, updates: int, generator: Generator) -> list[tuple[Tensor, Tensor]]:
    """Share out chains among updates, in random order; every one of their transitions comes once.

    Args:
        samples: how many chains there are.
        steps: ``[n]`` int64, the trained steps of every chain.
        updates: how many optimizer steps there are; fewer where there are fewer chains.
        generator: of the order.

    Returns:
        For each update the indices (sample, step) of its transitions.
    """
    shuffled = torch.randperm(samples, generator=generator)
    # whole chains; the order of steps inside a chain has no effect, for their gradients are summed
    return [
        (chain.repeat_interleave(len(steps)), steps.repeat(len(chain)))
        for chain in shuffled.tensor_split(min(updates, samples))
    ]


def guarded_log_ratio(transition: Transition, x_next: Tensor, means_old: Tensor) -> Tensor:
    """Compute GRPO-Guard's log-ratio (arXiv 2510.22319): recentred and scaled by the step's deviation sigma.

    It is sigma l + ||mean - mean_old||^2 / (2 sigma), l being the plain log-ratio. With x' = mean_old + sigma z that is
    z . (mean - mean_old): its expectation is 0 whatever the mean, and its gradient does not grow as sigma falls, so the
    quiet last steps do not dominate.

    Args:
        transition: under the current weights, with a graph.
        x_next: ``[B, C, h, w]`` what was sampled.
        means_old: ``[B, C, h, w]`` the sampling policy's means.

    Returns:
        ``[B]``, summed over dimensions.
    """
    noise = (x_next - means_old) / transition.std  # z
    return (noise * (transition.mean - means_old)).flatten(1).sum(1)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """PPO's pessimistic loss of each transition, for ratios and advantages of one shape (Schulman et al. 2017, eq. 7)."""
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped, clipped)


def zero_spread_share(advantages: Tensor, prompts: Sequence[str]) -> float:
    """The share of prompts whose advantages ``[B]`` are all exactly 0: their rewards have no spread to learn from."""
    groups = _groups(prompts)
    return sum(bool((advantages[rows] == 0).all()) for rows in groups.values()) / len(groups)


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


class Epoch(NamedTuple):
    """What an epoch sampled.

    Attributes:
        prompts: of N images, in groups of equal ones.
        trajectory: their chains.
        rewards: ``[N]`` the proxy's own scores.
        learned: ``[N]`` what is learned from: the scores as the run's mitigations leave them.
    """

    prompts: list[str]
    trajectory: Trajectory
    rewards: Tensor
    learned: Tensor

    def metrics(self, advantages: Tensor) -> dict[str, float]:
        """Return what the record says of the scores and of the advantages ``[N]`` that came of them."""
        mean, deviation = moments(self.rewards)
        return {
            "proxy/mean": mean,
            "proxy/std": deviation,
            "advantage_spread": moments(advantages)[1],
            "zero_spread_prompts": zero_spread_share(advantages, self.prompts),
        }


def sample_epoch(ctx: TrainContext, params: SurrogateParams, eta: Tensor | None = None) -> Epoch:
    """Sample N chains from the current policy and have their images scored: N queries.

    Args:
        ctx: of the run.
        params: how many, and how many of one prompt.
        eta: ``[T]`` noise of each step, where it is not the schedule's own.
    """
    prompts = draw_epoch_prompts(ctx, params.samples_per_epoch, params.images_per_prompt)
    with_kl = ctx.mitigations.reads_kl("reward", "advantages")
    guard = params.ratio == "guard"
    with torch.no_grad():
        trajectory = ctx.policy.rollout(prompts, ctx.generators["sampling"], eta=eta, with_kl=with_kl, with_means=guard)
        rewards = ctx.proxy(trajectory.images, prompts)
        return Epoch(prompts, trajectory, rewards, ctx.mitigations.reward(rewards, trajectory))


class PerPromptStats:
    """Running mean and deviation of each prompt's reward (DDPO, section 4.3; ddpo-pytorch ``stat_tracking.py``).

    A first-in-first-out buffer of raw rewards per prompt outlives epochs. Rewards are appended *before* they
    are normalised; a prompt with fewer than ``min_count`` uses the whole batch's mean and deviation.
    """

    def __init__(self, buffer_size: int, min_count: int) -> None:
        self.buffer_size, self.min_count = buffer_size, min_count
        self.buffers: dict[str, deque[float]] = {}

    def update(self, prompts: Sequence[str], rewards: Tensor) -> Tensor:
        """Advantages ``[B]`` = (r - mean) / (std + 1e-6), with the population's deviation; 0 where that is 0."""
        advantages = torch.empty_like(rewards)
        for prompt, rows in _groups(prompts).items():
            buffer = self.buffers.setdefault(prompt, deque(maxlen=self.buffer_size))
            buffer.extend(rewards[rows].tolist())
            known = rewards if len(buffer) < self.min_count else rewards.new_tensor(list(buffer))
            advantages[rows] = standardise(rewards[rows], known)
        return advantages

    def state_dict(self) -> dict[str, Any]:
        return {prompt: list(buffer) for prompt, buffer in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffers = {prompt: deque(values, maxlen=self.buffer_size) for prompt, values in state.items()}
