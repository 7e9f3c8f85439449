"""DDPO: denoising as a multi-step decision problem, solved by policy gradients (Black et al. 2024, arXiv 2305.13301)."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from overopt_bench.algorithms.ppo import (
    PerPromptStats,
    Reduction,
    clipped_surrogate,
    draw_epoch_prompts,
    reduce_log_prob,
    zero_spread_share,
)
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, AlgorithmParams, TrainContext


class DDPOParams(AlgorithmParams):
    """Defaults of ddpo-pytorch's ``dgx:aesthetic`` configuration where no other source is named."""

    estimator: Literal["importance", "reinforce"] = Field(
        "importance",
        description="DDPO-IS (clipped importance sampling) or DDPO-SF (score function) [paper, section 4.3]",
    )
    samples_per_epoch: int = Field(
        256, ge=1, description="images sampled between updates [dgx:aesthetic: 8 GPUs x 8 x 4]"
    )
    images_per_prompt: int = Field(1, ge=1, description="1 draws prompts i.i.d. [ddpo-pytorch]; more draws groups")
    updates_per_epoch: int = Field(
        2, ge=1, description="optimizer steps per epoch, each over whole chains [dgx:aesthetic]"
    )
    transitions_per_update: int | None = Field(
        None,
        ge=1,
        description="if set, updates use this many single transitions instead of whole chains [ours; none = published]",
    )
    inner_epochs: int = Field(1, ge=1, description="passes over each epoch's samples [ddpo-pytorch]")
    lr: float = Field(3e-4, gt=0, description="AdamW learning rate [ddpo-pytorch]")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay [ddpo-pytorch]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip [ddpo-pytorch]")
    clip_range: float = Field(
        1e-4, gt=0, description="PPO clip of the ratio, in units of log_prob_reduction [ddpo-pytorch]"
    )
    log_prob_reduction: Reduction = Field(
        "mean", description="log-probability over latent dimensions: mean [ddpo-pytorch] or sum, the true ratio [paper]"
    )
    advantage_clip: float = Field(
        5.0, gt=0, description="advantages are clipped to +- this at the loss [ddpo-pytorch; JAX code 10]"
    )
    stats_buffer: int = Field(32, ge=1, description="rewards remembered per prompt [dgx:aesthetic]")
    stats_min_count: int = Field(16, ge=1, description="fewer than this: the batch's statistics [dgx:aesthetic]")
    micro_batch: int = Field(
        128,
        ge=1,
        description="transitions per network pass; memory only [ours]",
        json_schema_extra={"memory_only": True},
    )

    mini: ClassVar[dict[str, Any]] = {
        "samples_per_epoch": 128, "images_per_prompt": 16, "transitions_per_update": 384, "lr": 2e-3,
        "clip_range": 0.2, "log_prob_reduction": "sum", "stats_buffer": 16,
    }  # fmt: skip


@register_algorithm
class DDPO(Algorithm):
    """DDPO-IS, or DDPO-SF with ``estimator=reinforce``.

    Deviations, all named parameters: groups of one prompt (``images_per_prompt``), updates over single
    transitions (``transitions_per_update``) and true importance ratios (``log_prob_reduction=sum``) are
    available; the defaults are the published ones. Log-probabilities are float32 throughout. The published
    code rounds latents to half precision after their log-probability was taken; that error is not reproduced.
    """

    name = "ddpo"
    summary = "policy gradient over denoising steps with clipped importance sampling (or reinforce)"
    Params = DDPOParams

    def __init__(self, ctx: TrainContext, params: DDPOParams) -> None:
        super().__init__(ctx, params)
        self.parameters = ctx.policy.trainable()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=params.lr, weight_decay=params.weight_decay)
        self.per_prompt_stats = PerPromptStats(params.stats_buffer, params.stats_min_count)
        self.dimensions = math.prod(ctx.policy.latent_shape)

    def step(self) -> dict[str, float]:
        # 1. sample N chains x_0 .. x_T from the current policy; keep log p_old of every transition
        prompts = draw_epoch_prompts(self.ctx, self.params.samples_per_epoch, self.params.images_per_prompt)
        with torch.no_grad():
            trajectory = self.ctx.policy.rollout(prompts, self.ctx.generators["sampling"])
            rewards = self.ctx.proxy(trajectory.images, prompts)  # [N], N queries

        # 2. one advantage per image, used at every step of its chain
        advantages = self.per_prompt_stats.update(prompts, rewards)  # [N]
        metrics = {
            "proxy/mean": rewards.mean().item(),
            "proxy/std": rewards.std(unbiased=False).item(),
            "advantage_spread": advantages.std(unbiased=False).item(),
            "zero_spread_prompts": zero_spread_share(rewards, prompts),
        }
        advantages = advantages.clamp(-self.params.advantage_clip, self.params.advantage_clip)

        # 3. clipped importance-sampling updates
        x, x_next = trajectory.latents[:, :-1], trajectory.latents[:, 1:]  # [N, T, C, h, w]
        log_probs_old = reduce_log_prob(trajectory.log_probs, self.dimensions, self.params.log_prob_reduction)  # [N, T]
        records = []
        for _ in range(self.params.inner_epochs):
            for sample, step in self.batches(len(prompts)):  # flat indices of the transitions of one update
                records.append(
                    self.update(
                        x[sample, step], x_next[sample, step], step, [prompts[k] for k in sample.tolist()],
                        log_probs_old[sample, step], advantages[sample],
                    )
                )  # fmt: skip
        means = torch.tensor(records).mean(0).tolist()
        names = ("loss", "ratio/mean", "clipfrac", "approx_kl", "grad_norm")
        return {**metrics, **dict(zip(names, means, strict=True)), "optimizer_steps": len(records)}

    def batches(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """(sample, step) index pairs of each update, in random order; every transition comes once."""
        steps, generator = self.ctx.policy.num_steps, self.ctx.generators["batch"]
        if self.params.transitions_per_update is not None:
            flat = torch.randperm(samples * steps, generator=generator)
            updates = max(1, round(len(flat) / self.params.transitions_per_update))
            return [(chunk // steps, chunk % steps) for chunk in flat.tensor_split(updates)]
        shuffled = torch.randperm(samples, generator=generator)
        updates = min(self.params.updates_per_epoch, samples) if self.params.estimator == "importance" else 1
        # whole chains; the order of steps inside a chain has no effect, for their gradients are summed
        return [
            (chain.repeat_interleave(steps), torch.arange(steps).repeat(len(chain)))
            for chain in shuffled.tensor_split(updates)
        ]

    def update(
        self, x: Tensor, x_next: Tensor, step: Tensor, prompts: list[str], log_probs_old: Tensor, advantages: Tensor
    ) -> list[float]:
        """One optimizer step on M transitions: x, x_next ``[M, C, h, w]``, the rest ``[M]``."""
        total, sums = len(x), torch.zeros(4)
        for part in torch.arange(total).split(self.params.micro_batch):
            transition = self.ctx.policy.transition(x[part], step[part], [prompts[k] for k in part.tolist()])
            log_probs = reduce_log_prob(
                transition.log_prob(x_next[part]), self.dimensions, self.params.log_prob_reduction
            )
            log_ratio = log_probs - log_probs_old[part]  # [m]
            ratio = log_ratio.exp()
            if self.params.estimator == "importance":
                loss = clipped_surrogate(ratio, advantages[part], self.params.clip_range)
            else:
                loss = -advantages[part] * log_probs
            (loss.sum() / total).backward()
            with torch.no_grad():
                clipped = ((ratio - 1).abs() > self.params.clip_range).float()
                parts = (loss, ratio, clipped, 0.5 * log_ratio**2)
                sums += torch.stack([value.sum() for value in parts]).cpu()
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.params.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return [*(sums / total).tolist(), grad_norm.item()]

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "per_prompt_stats": self.per_prompt_stats.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.per_prompt_stats.load_state_dict(state["per_prompt_stats"])
