"""TDPO: temporal diffusion policy optimization (Zhang et al. 2024, arXiv 2402.08552, ICML 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from overopt_bench.algorithms.dormancy import Dormancy
from overopt_bench.algorithms.ppo import PerPromptStats, PolicyUpdater, PPOParams, sample_epoch, zero_spread_share
from overopt_bench.compute.moments import moments, standardise
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
    critic_hidden: tuple[int, ...] = Field((1024, 128, 64, 16), min_length=1, description="hidden widths [tdpo code]")
    critic_activation: Literal["none", "relu"] = Field(
        "none", description="none, a deep linear critic [tdpo code], or relu [correction]"
    )
    critic_dropout: bool = Field(True, description="dropout 0.2, 0.2, 0.1 while training [tdpo code]")
    probe_size: int = Field(
        256, ge=1, description="stored features on which dormancy is measured [ours; tdpo code: 64, redrawn each epoch]"
    )


@register_algorithm
class TDPO(Algorithm):
    """Each step has its own reward, the image's reward minus a critic of the intermediate image, and its own update.

    Deviations, all named parameters: see ``TDPOParams``. Not reproduced from the published code: half-precision
    latents, critic gradients that are unscaled twice, a probe that changes every epoch. The optional KL
    penalties of the code are not offered.
    """

    name = "tdpo"
    title = "TDPO"
    summary = "a temporal critic on intermediate images and updates per timestep"
    paper = "2402.08552"
    Params: ClassVar[type[AlgorithmParams]] = TDPOParams
    params: TDPOParams
    hooks = frozenset({"reward", "advantages", "loss"})

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
        self.dormancy = Dormancy(self.critic, params.probe_size, ctx.generators["critic"])

    @classmethod
    def cost(cls, params: TDPOParams, num_steps: int) -> ImageCost:
        steps = params.trained_steps(num_steps)
        return ImageCost(trained=steps, encoded=steps)

    def step(self) -> dict[str, float]:
        # 1. sample N chains; the critic looks at every trained step's noisy latent, decoded as it is
        epoch = sample_epoch(self.ctx, self.params)
        prompts, trajectory = epoch.prompts, epoch.trajectory
        with torch.no_grad():
            features = self.encode(trajectory.latents[:, : self.updater.trained_steps])  # [N, T, D]
            values_old = self.critic.eval()(features)  # [N, T]

        # 2. temporal rewards: normalised terminal reward minus the critic's value of the step's input
        normalised = self.per_prompt_stats.update(prompts, epoch.learned)  # [N]
        returns = normalised[:, None].expand_as(values_old)  # [N, T], gamma 1
        explained = explained_variance(returns, values_old)
        advantages = returns - values_old  # the temporal reward of step i: A_i = G_i - V(x_i)
        size = torch.maximum(returns.abs(), values_old.abs()).max().item()  # of what the differences are rounded at
        spread = moments(advantages, size)[1]  # population, as NumPy's in the code; 0, not NaN, for one transition
        advantages = standardise(advantages, epsilon=1e-8, magnitude=size)  # over the whole epoch
        advantages = self.ctx.mitigations.advantages(advantages, trajectory)
        log_probs_old = trajectory.log_probs  # [N, T]

        # 3. an update per timestep: the j-th takes the j-th of each sample's own shuffled steps
        records = []
        self.critic.train()
        for sample, step in self.batches(len(prompts)):
            log_prob_old, advantage = log_probs_old[sample, step], advantages[sample, step]
            own_prompts = [prompts[k] for k in sample.tolist()]
            policy_row = self.updater.step(trajectory.latents, sample, step, own_prompts, log_prob_old, advantage)
            critic_row = self.update_critic(features[sample, step], values_old[sample, step], returns[sample, step])
            records.append([*policy_row, *critic_row])

        # 4. record the critic's dormant neurons; TDPO-R resets some of them now and then
        self.end_of_epoch(features)
        names = (*PolicyUpdater.METRICS, "critic/loss", "critic/grad_norm")
        mean, deviation = moments(epoch.rewards)
        return {
            "proxy/mean": mean, "proxy/std": deviation, "advantage_spread": spread,
            "zero_spread_prompts": zero_spread_share(normalised, prompts), "critic/explained_variance": explained,
            **dict(zip(names, torch.tensor(records).mean(0).tolist(), strict=True)),
            PolicyUpdater.FIRST_CLIPFRAC: records[0][names.index("clipfrac")], "optimizer_steps": len(records),
        }  # fmt: skip

    def encode(self, latents: Tensor) -> Tensor:
        """Features ``[N, T, D]`` of the decoded latents ``[N, T, C, h, w]``, through uint8 as in the published code."""
        flat = latents.flatten(0, 1)  # [N T, C, h, w]

        def work(rows: Tensor) -> tuple[Tensor]:
            images = (self.ctx.policy.decode(flat[rows]) * 255).round() / 255
            return (self.ctx.encoder(images).float(),)

        (features,) = self.ctx.policy.world.map(work, len(flat), self.updater.micro_batch)
        return features.view(*latents.shape[:2], -1)

    def batches(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """(sample, step) indices of each update, M transitions of M different samples at unrelated noise levels."""
        steps, generator = self.updater.trained_steps, self.ctx.generators["batch"]
        shuffled = torch.randperm(samples, generator=generator)
        order = torch.rand((samples, steps), generator=generator).argsort(1)  # each sample's own order of steps
        chunks = shuffled.split(self.params.batch_size)
        return [(chunk, order[chunk, j]) for j in range(steps) for chunk in chunks]

    def update_critic(self, features: Tensor, value_old: Tensor, returns: Tensor) -> list[float]:
        """One step of the critic's optimizer: features ``[M, D]``, old values and returns ``[M]``."""
        value = self.critic(features)
        # L_V = 0.5 mean max((V - G)^2, (V_old + clip(V - V_old, -+0.2) - G)^2), the clip as ``value_clip``
        clipped = value_old + (value - value_old).clamp(-self.params.value_clip, self.params.value_clip)
        loss = 0.5 * torch.maximum((value - returns) ** 2, (clipped - returns) ** 2).mean()
        self.critic_optimizer.backward(self.params.critic_coefficient * loss)  # of the whole batch, on every process
        return [loss.item(), self.critic_optimizer.step()]

    def end_of_epoch(self, features: Tensor) -> None:
        """Look at the critic after the updates of an epoch; features: ``[N, T, D]`` of that epoch."""
        self.dormancy.end_of_epoch(features)

    def critic_events(self) -> list[dict[str, Any]]:
        return self.dormancy.take_events()

    def _parts(self) -> dict[str, Any]:
        return {
            "optimizer": self.updater.optimizer, "critic": self.critic, "critic_optimizer": self.critic_optimizer,
            "per_prompt_stats": self.per_prompt_stats, "recycler": self.dormancy,  # by its first name, which checkpoints hold
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts().items():
            part.load_state_dict(state[name])


def explained_variance(returns: Tensor, values: Tensor) -> float:
    """1 - Var(G - V) / Var(G); 0 where the returns have no spread, for there is nothing to explain."""
    spread = returns.var(unbiased=False)
    return (1 - (returns - values).var(unbiased=False) / spread).item() if spread > 1e-12 else 0.0
