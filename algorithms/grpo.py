"""GRPO on denoising chains: PPO whose baseline is the image's group.

DanceGRPO (Xue et al. 2025, arXiv 2505.07818) and Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), here on DDIM. ``window`` is
MixGRPO's (Li et al. 2025, arXiv 2507.21802) and Flow-GRPO-Fast's; ``ratio=guard`` is GRPO-Guard's (arXiv 2510.22319).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from overopt_bench.algorithms.groups import Scale, group_advantages
from overopt_bench.algorithms.ppo import (
    PolicyUpdater,
    SurrogateParams,
    chain_batches,
    sample_epoch,
)
from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, ImageCost, TrainContext

if TYPE_CHECKING:
    from torch import Tensor


class GRPOParams(SurrogateParams):
    """Defaults of DanceGRPO's ``train_grpo_sd.py`` (2025-10) where no other source is named."""

    samples_per_epoch: int = Field(512, ge=1, description="images sampled per epoch [DanceGRPO: 32 prompts x 16]")
    images_per_prompt: int = Field(16, ge=2, description="images of a group, each other's baseline [DanceGRPO]")
    skip_last_steps: int = Field(
        1, ge=0, description="last denoising steps left out of the loss, which are nearly deterministic [DanceGRPO]"
    )
    updates_per_epoch: int = Field(2, ge=1, description="optimizer steps per epoch, each over whole chains [DanceGRPO]")
    lr: float = Field(3e-4, gt=0, description="AdamW learning rate [Flow-GRPO, LoRA; DanceGRPO 1e-5 for the U-Net]")
    advantage_scale: Scale = Field(
        "group",
        description="what a group's reward differences are divided by: group [DanceGRPO], batch [Flow-GRPO], none",
    )
    advantage_clip: float = Field(5.0, gt=0, description="advantages are clipped to +- this [DanceGRPO]")
    window: int | None = Field(
        None,
        ge=1,
        description="steps that have noise and are trained, drawn each epoch to start in the first half of the chain; none:"
        " all [Flow-GRPO-Fast and MixGRPO 2 to 3]",
    )


@register_algorithm
class GRPO(Algorithm):
    """Group-relative policy optimization.

    A group is judged by itself: no statistics of earlier epochs (DDPO's tracker) and no critic. With ``window`` the other
    steps are deterministic, so a reward is credited to few decisions; evaluations keep the suite's own noise in every
    step, which is another distribution of images than the one that is trained.

    Deviations: DanceGRPO starts all images of a device's batch from one initial latent; here each image has its own.
    Neither Flow-GRPO's KL penalty nor its filter of groups without spread is part of this algorithm; such groups have
    advantage 0 and count in the loss's mean.
    """

    name = "grpo"
    title = "GRPO"
    summary = "group-relative policy optimization; window: noise in few steps; ratio=guard: GRPO-Guard"
    paper = "2505.07818"
    Params = GRPOParams
    hooks = frozenset({"reward", "advantages", "loss"})
    params: GRPOParams

    def __init__(self, ctx: TrainContext, params: GRPOParams) -> None:
        super().__init__(ctx, params)
        self.updater = PolicyUpdater(ctx, params, params.lr)

    @classmethod
    def cost(cls, params: GRPOParams, num_steps: int) -> ImageCost:
        trained = params.trained_steps(num_steps)
        trained = min(params.window or trained, trained)
        return ImageCost(trained=trained)

    def step(self) -> dict[str, float]:
        params = self.params
        # 1. sample groups of K chains; with a window, its steps alone have noise
        steps = self.draw_steps()  # [n], those that are trained
        eta = None if params.window is None else self.window_eta(steps)
        epoch = sample_epoch(self.ctx, params, eta)
        prompts, trajectory = epoch.prompts, epoch.trajectory

        # 2. A_k = (r_k - mean of the group) / deviation, used at every trained step of the chain
        advantages = group_advantages(
            epoch.learned, min(params.images_per_prompt, len(prompts)), params.advantage_scale
        )
        metrics = epoch.metrics(advantages)
        advantages = advantages[:, None].expand(-1, self.ctx.policy.num_steps)  # [N, T]
        advantages = self.ctx.mitigations.advantages(advantages, trajectory)
        advantages = advantages.clamp(-params.advantage_clip, params.advantage_clip)

        # 3. clipped updates
        latents = trajectory.latents  # [N, T+1, C, h, w]
        for sample, step in chain_batches(len(prompts), steps, params.updates_per_epoch, self.ctx.generators["batch"]):
            own = [prompts[k] for k in sample.tolist()]
            old, advantage = trajectory.log_probs[sample, step], advantages[sample, step]
            self.updater.step(latents, sample, step, own, old, advantage, eta=eta, means_old=trajectory.means)
        return {**metrics, **self.updater.take_summary()}

    def draw_steps(self) -> Tensor:
        """Return the steps that this epoch trains, ``[n]`` in order: a window, or all that are not skipped."""
        trained = self.updater.trained_steps
        if self.params.window is None:
            return torch.arange(trained)
        width = min(self.params.window, trained)
        starts = min((self.ctx.policy.num_steps + 1) // 2, trained - width + 1)  # in the first half of the chain
        first = int(torch.randint(starts, (1,), generator=self.ctx.generators["batch"]))
        return torch.arange(first, first + width)

    def window_eta(self, steps: Tensor) -> Tensor:
        """Return the noise of all steps ``[T]``: the suite's in these ones, 0 in the others."""
        own = self.ctx.policy.schedule.eta
        return torch.zeros_like(own).index_copy(0, steps, own[steps])

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.updater.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updater.optimizer.load_state_dict(state["optimizer"])
