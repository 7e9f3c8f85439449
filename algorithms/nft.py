"""DiffusionNFT: policy improvement on the forward process (Zheng et al. 2025, arXiv 2509.16117).

Own samples are noised again; the prediction is pulled towards good ones, and its mirror image through the sampling policy
towards bad ones. No log-probability occurs, so any solver may sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from overopt_bench.algorithms.groups import Scale, group_advantages
from overopt_bench.algorithms.ppo import draw_epoch_prompts, zero_spread_share
from overopt_bench.compute.moments import moments
from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, AlgorithmParams, ImageCost, TrainContext

if TYPE_CHECKING:
    from torch import Tensor

OLD = "old"  # the policy's copy that samples
FLOOR = 1e-5  # of the adaptive scale [NVlabs code]


class NFTParams(AlgorithmParams):
    """Defaults of the authors' code (NVlabs/DiffusionNFT, 2025-09) for GenEval, PickScore and HPSv2."""

    samples_per_epoch: int = Field(1152, ge=1, description="images sampled per epoch [code: 48 prompts x 24]")
    images_per_prompt: int = Field(24, ge=2, description="images of a group, each other's baseline [code]")
    updates_per_epoch: int = Field(1, ge=1, description="optimizer steps per epoch [code; 2 for OCR]")
    deterministic: bool = Field(True, description="sample without noise (eta 0) [code], or with the suite's noise")
    timestep_fraction: float = Field(
        0.99, gt=0, le=1, description="share of the sampler's timesteps at which each image is noised again [code]"
    )
    beta: float = Field(1.0, gt=0, description="inverse length of a step, b in the loss [code; 0.1 for OCR]")
    reference: float = Field(1e-4, ge=0, description="weight of the squared distance to the base model [code]")
    advantage_scale: Scale = Field(
        "batch", description="what a group's reward differences are divided by: group, batch or none [code: batch]"
    )
    advantage_clip: float = Field(5.0, gt=0, description="A_max: advantages are clipped to +- this [code]")
    old_decay_rate: float = Field(
        0.001, ge=0, description="growth per update of the old copy's decay, which starts at 0 [code; 0.0075 for OCR]"
    )
    old_decay_flat: int = Field(0, ge=0, description="updates before the decay begins to grow [code; 75 for OCR]")
    old_decay_max: float = Field(0.5, ge=0, lt=1, description="largest decay of the old copy [code; 0.999 for OCR]")
    lr: float = Field(3e-4, gt=0, description="AdamW learning rate [code, LoRA]")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay [code]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip [code]")

    def timesteps(self, num_steps: int) -> int:
        """Return at how many of T timesteps each image is noised again; at least one."""
        return max(1, int(self.timestep_fraction * num_steps))


class Terms(NamedTuple):
    """The loss of each re-noised image and what it is made of, all ``[B]``."""

    loss: Tensor
    old_deviate: Tensor  # |v - v_old|^2, mean over dimensions
    ref_deviate: Tensor  # |v - v_base|^2


@register_algorithm
class NFT(Algorithm):
    """DiffusionNFT, with predictions of the clean latent in place of the paper's velocities.

    The two are the same: both mixtures of predictions have weights that sum to 1, and the clean latent is an affine
    function of the velocity. Only the reference term depends on the unit; it is in velocities, as published.

    Guidance: the published runs have none, neither in sampling nor in training. Here both have the suite's, and the
    guided prediction is trained as if it were one network. Guided samples are then no samples of the model that their
    denoising loss belongs to, so that the paper's improvement theorem does not cover them; ``--guidance-scale 1`` is
    the published setting.

    Deviations: the solver is DDIM, where the code has a second-order one; evaluations draw from the trained weights,
    where the code has their moving average; their sampler is the suite's, with its noise.

    It offers no mitigation a place but stopping: chains without noise have no KL. ``reference`` is its own penalty.
    """

    name = "nft"
    title = "DiffusionNFT"
    summary = "re-noised samples pull the prediction to good images and push it from bad ones; no log-probabilities"
    paper = "2509.16117"
    Params = NFTParams
    params: NFTParams

    def __init__(self, ctx: TrainContext, params: NFTParams) -> None:
        super().__init__(ctx, params)
        self.optimizer = ctx.policy_optimizer(params.lr, params.weight_decay, params.max_grad_norm)
        self.updates = 0
        ctx.policy.keep(OLD)

    @classmethod
    def cost(cls, params: NFTParams, num_steps: int) -> ImageCost:
        count = params.timesteps(num_steps)
        return ImageCost(trained=count, predicted=2 * count)  # current; old and base

    def step(self) -> dict[str, float]:
        policy, params = self.ctx.policy, self.params
        # 1. sample N images from the old policy, by whatever solver
        prompts = draw_epoch_prompts(self.ctx, params.samples_per_epoch, params.images_per_prompt)
        eta = torch.zeros_like(policy.schedule.eta) if params.deterministic else None
        with torch.no_grad(), policy.using(OLD):
            trajectory = policy.rollout(prompts, self.ctx.generators["sampling"], eta=eta)
            rewards = self.ctx.proxy(trajectory.images, prompts)  # [N], N queries
        clean = trajectory.latents[:, -1]  # [N, C, h, w], all that is needed of the chains

        # 2. optimality of each image: its advantage in its group, clipped and mapped to [0, 1]
        advantages = group_advantages(rewards, min(params.images_per_prompt, len(prompts)), params.advantage_scale)
        optimality = (advantages / (2 * params.advantage_clip) + 0.5).clamp(0, 1)  # [N]

        # 3. updates on the images, noised again at the sampler's own timesteps
        records = []
        for sample, step in self.batches(len(prompts)):
            own_prompts = [prompts[k] for k in sample.tolist()]
            records.append(self.update(clean[sample], step, own_prompts, optimality[sample]))

        # 4. the old policy follows
        decay = self.old_decay()
        policy.blend(OLD, decay)
        mean, deviation = moments(rewards)
        names = (*Terms._fields, "grad_norm")
        return {
            "proxy/mean": mean, "proxy/std": deviation, "advantage_spread": moments(advantages)[1],
            "zero_spread_prompts": zero_spread_share(advantages, prompts), "old_decay": decay,
            **dict(zip(names, torch.tensor(records).mean(0).tolist(), strict=True)), "optimizer_steps": len(records),
        }  # fmt: skip

    def batches(self, samples: int) -> list[tuple[Tensor, Tensor]]:
        """Draw the (sample, step) index pairs of each update: an image comes with a random subset of the steps."""
        total, generator = self.ctx.policy.num_steps, self.ctx.generators["batch"]
        count = self.params.timesteps(total)
        shuffled = torch.randperm(samples, generator=generator)
        steps = torch.rand((samples, total), generator=generator).argsort(1)[:, :count]  # each image's own
        chunks = shuffled.tensor_split(min(self.params.updates_per_epoch, samples))
        return [(chunk.repeat_interleave(count), steps[chunk].flatten()) for chunk in chunks]

    def update(self, clean: Tensor, step: Tensor, prompts: list[str], optimality: Tensor) -> list[float]:
        """Take one optimizer step on M re-noised images.

        Args:
            clean: ``[M, C, h, w]`` the images' latents.
            step: ``[M]`` int64, the step whose timestep each is noised to.
            prompts: M.
            optimality: ``[M]`` in [0, 1].

        Returns:
            The means of ``Terms``, and the gradient's norm.
        """
        policy, total = self.ctx.policy, len(clean)
        noise = torch.randn(clean.shape, generator=self.ctx.generators["batch"]).to(clean)
        timesteps = policy.schedule.timesteps[step]
        sums = torch.zeros(len(Terms._fields))
        for part in policy.world.parts(total, self.ctx.micro_batch):
            own_prompts = [prompts[k] for k in part.tolist()]
            terms = self.terms(clean[part], noise[part], timesteps[part], own_prompts, optimality[part])
            self.optimizer.backward_part(terms.loss.sum() / total)
            sums += torch.stack([term.detach().sum() for term in terms]).cpu()
        grad_norm = self.optimizer.step()
        self.updates += 1
        return [*(policy.world.sum(sums) / total).tolist(), grad_norm]

    def terms(self, clean: Tensor, noise: Tensor, timesteps: Tensor, prompts: list[str], optimality: Tensor) -> Terms:
        """Compute the loss of images ``[B, C, h, w]``, each at a noise and a timestep of its own; see ``nft_loss``."""
        policy = self.ctx.policy
        noisy = policy.add_noise(clean, timesteps, noise)
        current = policy.predict(noisy, timesteps, prompts, checkpoint=self.ctx.checkpoint).clean
        with torch.no_grad():
            with policy.using(OLD):
                old = policy.predict(noisy, timesteps, prompts).clean
            with policy.base():
                base = policy.predict(noisy, timesteps, prompts).clean
        # at one noisy latent, clean predictions differ by -(noise level) times what velocities differ by
        level = policy.schedule.levels(timesteps)[1]
        ref_deviate = mean_square((current - base) / level)
        loss = nft_loss(current, old, clean, optimality, self.params.beta, self.params.advantage_clip)
        old_deviate = mean_square((current.detach() - old) / level)
        return Terms(loss + self.params.reference * ref_deviate, old_deviate, ref_deviate)

    def old_decay(self) -> float:
        """Return how much of itself the old copy keeps after this epoch: 0 at first, when it is the current policy."""
        params = self.params
        return float(min(params.old_decay_max, params.old_decay_rate * max(0, self.updates - params.old_decay_flat)))

    def state_dict(self) -> dict[str, Any]:
        # the old copy is the policy's, which saves it
        return {"optimizer": self.optimizer.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.updates = state["updates"]


def nft_loss(
    current: Tensor, old: Tensor, clean: Tensor, optimality: Tensor, beta: float, advantage_clip: float
) -> Tensor:
    """Return DiffusionNFT's policy loss of each image (section 3 of the paper, with the code's scaling).

    Args:
        current: ``[B, C, h, w]`` the clean latent that the current policy predicts, with a graph.
        old: the old policy's prediction at the same noisy latent.
        clean: the image's own latent.
        optimality: ``[B]``, 1 for an image to be approached, 0 for one to be avoided.
        beta: b; the pointwise optimum is the old prediction plus the weighted error over b.
        advantage_clip: A_max, which makes the gradient at ``current = old`` the advantage times the denoising loss's.

    Returns:
        ``[B]``; a mean over dimensions.
    """
    positive = beta * current + (1 - beta) * old  # X+
    negative = (1 + beta) * old - beta * current  # X-, the mirror image
    losses = optimality * scaled_error(positive, clean) + (1 - optimality) * scaled_error(negative, clean)
    return advantage_clip / beta * losses


def scaled_error(prediction: Tensor, clean: Tensor) -> Tensor:
    """Divide the squared error by the mean absolute one, without its gradient: ``[B]``, alike at all noise levels."""
    scale = (prediction - clean).detach().abs().flatten(1).mean(1).clamp(min=FLOOR)
    return mean_square(prediction - clean) / scale


def mean_square(difference: Tensor) -> Tensor:
    """Average squares over all dimensions but the first: ``[B]``."""
    return (difference**2).flatten(1).mean(1)
