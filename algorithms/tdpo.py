"""TDPO: temporal diffusion policy optimization (Zhang et al. 2024, arXiv 2402.08552, ICML 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from overopt_bench.algorithms.dormancy import Dormancy
from overopt_bench.algorithms.ppo import PerPromptStats, PolicyUpdater, PPOParams, sample_epoch, zero_spread_share
from overopt_bench.compute.moments import explained_by_step, explained_variance, moments, standardise
from overopt_bench.encoders.latents import latent_features
from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, AlgorithmParams, ImageCost, TrainContext

if TYPE_CHECKING:
    from torch import Tensor


class TDPOParams(PPOParams):
    """Defaults of the authors' code (tdpo, 2024-07) where no other source is named."""

    batch_size: int = Field(
        128, ge=1, description="transitions per update, one of each sample [tdpo code: 16 x 8 GPUs]"
    )
    lr: float = Field(1e-4, gt=0, description="AdamW learning rate of the policy [tdpo code]")
    critic_lr: float = Field(1e-4, gt=0, description="AdamW learning rate of the critic [tdpo code]")
    value_clip: float = Field(0.2, gt=0, description="clip of the critic's change [tdpo code]")
    critic_coefficient: float = Field(1.0, gt=0, description="weight of the critic's loss [tdpo code]")
    critic_updates: int = Field(
        1,
        ge=1,
        description="critic steps per policy update: the first on its own transitions, more on as many others of the epoch"
        " [tdpo code: 1]",
    )
    critic_hidden: tuple[int, ...] = Field((1024, 128, 64, 16), min_length=1, description="hidden widths [tdpo code]")
    critic_activation: Literal["none", "relu"] = Field(
        "none", description="none, a deep linear critic [tdpo code], or relu [correction]"
    )
    critic_dropout: bool = Field(True, description="dropout 0.2, 0.2, 0.1 while training [tdpo code]")
    probe_size: int = Field(
        256, ge=1, description="stored features on which dormancy is measured [ours; tdpo code: 64]"
    )
    probe: Literal["fixed", "epoch"] = Field(
        "fixed", description="those of the first epoch [ours], or drawn anew from each epoch's [tdpo code]"
    )


@register_algorithm
class TDPO(Algorithm):
    """Each step has its own reward, the image's reward minus a critic of the intermediate image, and its own update.

    Deviations, all named parameters: see ``TDPOParams``. Not reproduced from the published code: half-precision
    latents, critic gradients that are unscaled twice. The optional KL penalties of the code are not offered.

    The record's ``critic/explained_variance`` is that of the values which the advantages were made with: the critic as the
    epoch found it, on returns that it was not fitted to. ``critic/steps_since_reset`` is that critic's age in steps. The
    "critic" events have the explained variance at the end of the epoch, on the same returns.
    """

    name = "tdpo"
    title = "TDPO"
    summary = "a temporal critic on intermediate images and updates per timestep"
    paper = "2402.08552"
    Params: ClassVar[type[AlgorithmParams]] = TDPOParams
    params: TDPOParams
    hooks = frozenset({"reward", "advantages", "loss"})
    CRITIC_METRICS = ("critic/loss", "critic/grad_norm", "critic/clipfrac")

    def __init__(self, ctx: TrainContext, params: TDPOParams) -> None:
        from overopt_bench.algorithms.critic import TemporalCritic  # a torch module, so its import needs torch

        super().__init__(ctx, params)
        self.updater = PolicyUpdater(ctx, params, params.lr)
        self.critic = TemporalCritic(
            ctx.feature_dim,
            params.critic_hidden,
            params.critic_activation,
            params.critic_dropout,
            ctx.generators["critic"],
        ).to(ctx.policy.device)
        self.critic_optimizer = ctx.optimizer(
            self.critic.parameters(), params.critic_lr, params.weight_decay, params.max_grad_norm
        )
        self.per_prompt_stats = PerPromptStats(params.stats_buffer, params.stats_min_count)
        self.dormancy = Dormancy(
            self.critic, params.probe_size, ctx.generators["critic"], redrawn=params.probe == "epoch"
        )
        self.steps_since_reset = 0  # of the critic; since the start where nothing was ever reset

    @classmethod
    def cost(cls, params: TDPOParams, num_steps: int) -> ImageCost:
        steps = params.trained_steps(num_steps)
        return ImageCost(trained=steps, encoded=steps)

    def step(self) -> dict[str, float]:
        # 1. sample N chains; the critic looks at every trained step's noisy latent, decoded as it is
        epoch = sample_epoch(self.ctx, self.params)
        prompts, trajectory = epoch.prompts, epoch.trajectory
        with torch.no_grad():
            latents = trajectory.latents[:, : self.updater.trained_steps]  # [N, T, C, h, w], the steps' inputs
            (features,) = latent_features(
                self.ctx.policy, latents, self.updater.micro_batch, self.ctx.encoder
            )  # [N, T, D]
            values_old = self.critic.eval()(features)  # [N, T]

        # 2. temporal rewards: normalised terminal reward minus the critic's value of the step's input
        normalised = self.per_prompt_stats.update(prompts, epoch.learned)  # [N]
        returns = normalised[:, None].expand_as(values_old)  # [N, T], gamma 1
        critic_metrics = {
            "critic/steps_since_reset": self.steps_since_reset,
            "critic/explained_variance": explained_variance(returns, values_old),
            **{f"critic/explained_variance/step{k}": e for k, e in enumerate(explained_by_step(returns, values_old))},
        }
        advantages = returns - values_old  # the temporal reward of step i: A_i = G_i - V(x_i)
        size = torch.maximum(returns.abs(), values_old.abs()).max().item()  # of what the differences are rounded at
        spread = moments(advantages, size)[1]  # population, as NumPy's in the code; 0, not NaN, for one transition
        advantages = standardise(advantages, epsilon=1e-8, magnitude=size)  # over the whole epoch
        advantages = self.ctx.mitigations.advantages(advantages, trajectory)
        log_probs_old = trajectory.log_probs  # [N, T]

        # 3. an update per timestep: the j-th takes the j-th of each sample's own shuffled steps
        stored = [v.flatten(0, 1) for v in (features, values_old, returns)]  # [N T, D], [N T], [N T]
        critic_rows = []
        self.critic.train()
        for sample, step in self.batches(len(prompts)):
            log_prob_old, advantage = log_probs_old[sample, step], advantages[sample, step]
            own_prompts = [prompts[k] for k in sample.tolist()]
            self.updater.step(
                trajectory.latents, sample, step, own_prompts, log_prob_old, advantage, means_old=trajectory.means
            )
            for rows in self.critic_batches(sample, step, values_old.numel()):
                critic_rows.append(self.update_critic(*(v[rows] for v in stored)))
        self.steps_since_reset += len(critic_rows)

        # 4. record the critic's dormant neurons; TDPO-R resets some of them now and then
        self.end_of_epoch(features, returns)
        mean, deviation = moments(epoch.rewards)
        return {
            "proxy/mean": mean, "proxy/std": deviation, "advantage_spread": spread,
            "zero_spread_prompts": zero_spread_share(normalised, prompts), **self.updater.take_summary(), **critic_metrics,
            **dict(zip(self.CRITIC_METRICS, torch.tensor(critic_rows).mean(0).tolist(), strict=True)),
        }  # fmt: skip

    def batches(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """(sample, step) indices of each update, M transitions of M different samples at unrelated noise levels."""
        steps, generator = self.updater.trained_steps, self.ctx.generators["batch"]
        shuffled = torch.randperm(samples, generator=generator)
        order = torch.rand((samples, steps), generator=generator).argsort(1)  # each sample's own order of steps
        chunks = shuffled.split(self.params.batch_size)
        return [(chunk, order[chunk, j]) for j in range(steps) for chunk in chunks]

    def critic_batches(self, sample: Tensor, step: Tensor, total: int) -> Iterator[Tensor]:
        """Give the transitions of each critic step of one policy update, ``[M]`` each, as rows of the flattened ``[N T]``.

        The first are the update's own; each further batch is M different ones of all ``total`` that the epoch stored.
        """
        yield sample * self.updater.trained_steps + step
        for _ in range(self.params.critic_updates - 1):
            yield torch.randperm(total, generator=self.ctx.generators["critic"])[: len(sample)]

    def update_critic(self, features: Tensor, value_old: Tensor, returns: Tensor) -> list[float]:
        """Take one step of the critic's optimizer and return the values of ``CRITIC_METRICS``.

        Args:
            features: ``[M, D]``.
            value_old: ``[M]`` the critic's values before the epoch's updates.
            returns: ``[M]``.
        """
        value = self.critic(features)
        # L_V = 0.5 mean max((V - G)^2, (V_old + clip(V - V_old, -+0.2) - G)^2), the clip as ``value_clip``
        clipped = value_old + (value - value_old).clamp(-self.params.value_clip, self.params.value_clip)
        near, far = (value - returns) ** 2, (clipped - returns) ** 2
        loss = 0.5 * torch.maximum(near, far).mean()
        self.critic_optimizer.backward(self.params.critic_coefficient * loss)  # of the whole batch, on every process
        # a value that went further towards its return than the clip allows has no gradient
        stopped = (far > near) & ((value - value_old).abs() > self.params.value_clip)
        return [loss.item(), self.critic_optimizer.step(), stopped.float().mean().item()]

    def end_of_epoch(self, features: Tensor, returns: Tensor) -> None:
        """Look at the critic after the updates of an epoch, whose features ``[N, T, D]`` and returns ``[N, T]`` these are."""
        self.dormancy.end_of_epoch(features, returns)

    def critic_events(self) -> list[dict[str, Any]]:
        return self.dormancy.take_events()

    def _parts(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.optimizer, "critic": self.critic, "critic_optimizer": self.critic_optimizer,
            "per_prompt_stats": self.per_prompt_stats, "recycler": self.dormancy,  # by its first name, which checkpoints hold
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return {**parts, "steps_since_reset": self.steps_since_reset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.steps_since_reset = state.get("steps_since_reset", 0)  # checkpoints did not always hold it
