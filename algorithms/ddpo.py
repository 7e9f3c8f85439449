"""DDPO: denoising as a multi-step decision problem, solved by policy gradients (Black et al. 2024, arXiv 2305.13301)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from overopt_bench.algorithms.ppo import (
    PerPromptStats,
    PolicyUpdater,
    PPOParams,
    chain_batches,
    sample_epoch,
)
from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, ImageCost, TrainContext

if TYPE_CHECKING:
    from torch import Tensor


class DDPOParams(PPOParams):
    """Defaults of ddpo-pytorch's ``dgx:aesthetic`` configuration where no other source is named."""

    estimator: Literal["importance", "reinforce"] = Field(
        "importance",
        description="DDPO-IS (clipped importance sampling) or DDPO-SF (score function) [paper, section 4.3]",
    )
    updates_per_epoch: int = Field(
        2, ge=1, description="optimizer steps per epoch, each over whole chains; reinforce takes 1 [dgx:aesthetic]"
    )
    inner_epochs: int = Field(1, ge=1, description="passes over each epoch's samples [ddpo-pytorch]")
    lr: float = Field(3e-4, gt=0, description="AdamW learning rate [ddpo-pytorch]")
    advantage_clip: float = Field(
        5.0, gt=0, description="advantages clipped to +- this at the loss [ddpo-pytorch; JAX 10]"
    )

    @field_validator("estimator")
    @classmethod
    def _ratio_is_used(cls, estimator: str, info: ValidationInfo) -> str:
        if estimator == "reinforce" and info.data.get("ratio") == "guard":
            raise ValueError("must be importance with ratio=guard, for reinforce has no importance ratio")
        return estimator

    @field_validator("inner_epochs")
    @classmethod
    def _one_pass_on_policy(cls, inner_epochs: int, info: ValidationInfo) -> int:
        if info.data.get("estimator") == "reinforce" and inner_epochs > 1:
            raise ValueError(
                "must be 1 with estimator=reinforce, which has no importance ratio to correct a second pass"
            )
        return inner_epochs


@register_algorithm
class DDPO(Algorithm):
    """DDPO-IS, or DDPO-SF with ``estimator=reinforce``.

    Deviations, all named parameters: groups of one prompt (``images_per_prompt``), true importance ratios
    (``log_prob_reduction=sum``) and a loss without the last steps (``skip_last_steps``) are available; the defaults
    are the published ones. Log-probabilities are float32 throughout. The published code rounds latents to half
    precision after their log-probability was taken; that error is not reproduced.
    """

    name = "ddpo"
    title = "DDPO"
    summary = "policy gradient over denoising steps with clipped importance sampling (or reinforce)"
    paper = "2305.13301"
    Params = DDPOParams
    hooks = frozenset({"reward", "advantages", "loss"})
    params: DDPOParams

    def __init__(self, ctx: TrainContext, params: DDPOParams) -> None:
        super().__init__(ctx, params)
        self.updater = PolicyUpdater(ctx, params, params.lr, params.estimator)
        self.per_prompt_stats = PerPromptStats(params.stats_buffer, params.stats_min_count)

    @classmethod
    def cost(cls, params: DDPOParams, num_steps: int) -> ImageCost:
        return ImageCost(trained=params.trained_steps(num_steps) * params.inner_epochs)

    def step(self) -> dict[str, float]:
        # 1. sample N chains x_0 .. x_T from the current policy; keep log p_old of every transition
        epoch = sample_epoch(self.ctx, self.params)
        prompts, trajectory = epoch.prompts, epoch.trajectory

        # 2. one advantage per image, used at every step of its chain
        advantages = self.per_prompt_stats.update(prompts, epoch.learned)  # [N]
        metrics = epoch.metrics(advantages)
        advantages = advantages[:, None].expand(-1, self.ctx.policy.num_steps)  # [N, T]
        advantages = self.ctx.mitigations.advantages(advantages, trajectory)
        advantages = advantages.clamp(-self.params.advantage_clip, self.params.advantage_clip)

        # 3. clipped importance-sampling updates
        latents = trajectory.latents  # [N, T+1, C, h, w]
        log_probs_old = trajectory.log_probs  # [N, T]
        for _ in range(self.params.inner_epochs):
            for sample, step in self.batches(len(prompts)):  # flat indices of the transitions of one update
                own_prompts = [prompts[k] for k in sample.tolist()]
                old, advantage = log_probs_old[sample, step], advantages[sample, step]
                self.updater.step(latents, sample, step, own_prompts, old, advantage, means_old=trajectory.means)
        return {**metrics, **self.updater.take_summary()}

    def batches(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """(sample, step) index pairs of each update, in random order; every transition comes once.

        ``reinforce`` has one update: after it, the samples are no longer the policy's own.
        """
        updates = self.params.updates_per_epoch if self.params.estimator == "importance" else 1
        steps = torch.arange(self.updater.trained_steps)
        return chain_batches(samples, steps, updates, self.ctx.generators["batch"])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.optimizer.state_dict(),
            "per_prompt_stats": self.per_prompt_stats.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.optimizer.load_state_dict(state["optimizer"])
        self.per_prompt_stats.load_state_dict(state["per_prompt_stats"])
