"""AlignProp: backpropagate the reward through the sampler (Prabhudesai et al. 2023, arXiv 2310.03739).

With ``truncation=fixed`` it is DRaFT-K (Clark et al. 2024, arXiv 2309.17400) for K = ``grad_steps``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, AlgorithmParams, ChainRows, ImageCost, TrainContext

if TYPE_CHECKING:
    from torch import Tensor


class AlignPropParams(AlgorithmParams):
    """Defaults of the authors' 2024 code where no other source is named."""

    batch_size: int = Field(128, ge=1, description="images per update [2024 code: 4 GPUs x 8 x 4]")
    truncation: Literal["random", "normal", "fixed", "full"] = Field(
        "random",
        description="how many last steps keep their gradient: random, uniform 1..T [paper]; normal, T - int(N(0.84 T, 0.1 T))"
        " [2024 code: N(42, 5) of 50]; fixed, grad_steps [DRaFT-K]; full, all",
    )
    truncation_group: int = Field(
        8, ge=1, description="images that share a draw of the truncation [2024 code: a GPU's batch of 8]"
    )
    grad_steps: int = Field(1, ge=1, description="differentiated steps of truncation=fixed; 1 is DRaFT-1 [DRaFT]")
    lr: float = Field(1e-3, gt=0, description="AdamW learning rate [2024 code]")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW weight decay [2024 code; 2023 release 0.1]")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient norm clip [2024 code; 2023 release 5]")
    loss: Literal["maximise", "target"] = Field(
        "maximise", description="-r, or |r - target| [2024 code, target 10]; alike to AdamW while r < target"
    )
    target: float = Field(10.0, description="of loss=target [2024 code]")
    loss_coefficient: float = Field(
        0.01, gt=0, description="scales the loss: sets how often the norm clip acts [2024 code]"
    )


@register_algorithm
class AlignProp(Algorithm):
    """Truncated backpropagation through the sampler; one truncation for each group of images of an update.

    Deviations: the 2023 release and trl redraw the truncation at *every* denoising step, which skips steps
    rather than truncating; not offered. The 2024 code shows the reward an image mapped to [0.5, 1] by mistake;
    here it sees [0, 1]. eta is the suite's (1, as in the 2024 code), with the noise reparametrised.
    """

    name = "alignprop"
    title = "AlignProp"
    summary = (
        "backpropagation of a differentiable reward through the last steps of the sampler (DRaFT-K: truncation=fixed)"
    )
    paper = "2310.03739"
    Params = AlignPropParams
    hooks = frozenset({"reward", "loss"})
    params: AlignPropParams
    needs_gradient = True
    recomputes = True  # [paper]
    steady: ClassVar[Mapping[str, Any]] = {"truncation": "fixed", "grad_steps": 5}

    def __init__(self, ctx: TrainContext, params: AlignPropParams) -> None:
        super().__init__(ctx, params)
        self.optimizer = ctx.policy_optimizer(params.lr, params.weight_decay, params.max_grad_norm)

    @classmethod
    def cost(cls, params: AlignPropParams, num_steps: int) -> ImageCost:
        if params.truncation == "random":
            steps = (num_steps + 1) / 2
        elif params.truncation == "normal" and num_steps > 1:  # the mean of draw_grad_steps, redraws included
            below = [NormalDist(0.84 * num_steps, 0.1 * num_steps).cdf(k) for k in range(num_steps + 1)]
            cut = sum(k * (below[k + 1] - below[k]) for k in range(1, num_steps))
            steps = num_steps - cut / (below[num_steps] - below[1])
        else:
            steps = min(params.grad_steps, num_steps) if params.truncation == "fixed" else num_steps
        return ImageCost(backpropagated=steps)

    def step(self) -> dict[str, float]:
        n = min(self.params.batch_size, self.ctx.budget_left())
        prompts = self.ctx.draw_prompts(n, 1)
        # [n], K drawn once for each group
        grad_steps = torch.tensor([self.draw_grad_steps() for _ in range(0, n, self.params.truncation_group)])
        grad_steps = grad_steps.repeat_interleave(self.params.truncation_group)[:n]
        policy, world = self.ctx.policy, self.ctx.policy.world
        noise = policy.draw_noise(n, self.ctx.generators["sampling"])  # [T+1, n, C, h, w]
        sums = torch.zeros(3, dtype=torch.float64)  # of r, r^2 and the loss
        for part, k in self.batches(grad_steps):
            own_prompts = [prompts[row] for row in part.tolist()]
            # x_0 .. x_{T-K} without a graph, the last K steps and the decoder with one
            chains = policy.rollout_from(
                noise[:, part], own_prompts, grad_from=policy.num_steps - k, checkpoint=self.ctx.checkpoint,
                with_kl=self.ctx.mitigations.reads_kl("reward", "loss"),
            )  # images [m, 3, H, W], differentiable  # fmt: skip
            r = self.ctx.proxy(chains.images, own_prompts)  # [m]
            learned = self.ctx.mitigations.reward(r, chains)  # [m]
            loss = -learned if self.params.loss == "maximise" else (learned - self.params.target).abs()
            loss = loss + self.ctx.mitigations.penalty(ChainRows(chains))
            loss = self.params.loss_coefficient * loss.sum() / n
            self.optimizer.backward_part(loss)
            r, loss = r.detach().double().cpu(), loss.detach().double().cpu()
            sums += torch.stack([r.sum(), (r**2).sum(), loss])
        grad_norm = self.optimizer.step()
        total, squares, total_loss = world.sum(sums).tolist()
        mean = total / n
        return {
            "proxy/mean": mean, "proxy/std": max(0.0, squares / n - mean**2) ** 0.5, "loss": total_loss,
            "grad_norm": grad_norm, "grad_steps": grad_steps.double().mean().item(), "optimizer_steps": 1,
        }  # fmt: skip

    def batches(self, grad_steps: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Give this process's micro-batches ``[m]`` of images ``[n]``, each with the K that its images have in common."""
        for part in self.ctx.policy.world.parts(len(grad_steps), self.ctx.micro_batch):
            for k in grad_steps[part].unique().tolist():
                yield part[grad_steps[part] == k], k

    def draw_grad_steps(self) -> int:
        """How many last steps keep their gradient in a group."""
        steps = self.ctx.policy.num_steps
        if self.params.truncation == "random":
            return int(torch.randint(1, steps + 1, (1,), generator=self.ctx.generators["batch"]))
        if self.params.truncation == "normal" and steps > 1:
            while True:  # redrawn until 1 <= K < T, as in the 2024 code
                k = int(0.84 * steps + 0.1 * steps * torch.randn(1, generator=self.ctx.generators["batch"]).item())
                if 1 <= k < steps:
                    return steps - k
        return min(self.params.grad_steps, steps) if self.params.truncation == "fixed" else steps

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
