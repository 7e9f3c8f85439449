"""Best-of-n: draw n images from the base model, keep the one that the proxy likes best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import Field

from overopt_bench.lazy import torch
from overopt_bench.registry import register_algorithm
from overopt_bench.types import AlgorithmParams, Candidates, Selection, TrainContext

if TYPE_CHECKING:
    from torch import Tensor


def best_of_n_weights(pool: int, n: int) -> Tensor:
    """Compute the weights ``[pool]`` of the unbiased best-of-n estimate over a pool sorted by proxy, ascending.

    The k-th smallest (k from 1) is the best of C(k-1, n-1) of the C(pool, n) subsets of size n, so
    E[gold of the selected] = sum_k C(k-1, n-1) / C(pool, n) gold_(k), without bias and with the least variance
    (Nakano et al. 2021, WebGPT, appendix I).

    Raises:
        ValueError: unless 1 <= n <= pool.
    """
    if not 1 <= n <= pool:
        raise ValueError(f"n must lie in 1..{pool}, got {n}")

    def log_choose(a: int, b: int) -> float:
        return math.lgamma(a + 1) - math.lgamma(b + 1) - math.lgamma(a - b + 1)

    logs = [log_choose(k - 1, n - 1) - log_choose(pool, n) if k >= n else -math.inf for k in range(1, pool + 1)]
    return torch.tensor(logs, dtype=torch.float64).exp().float()


def best_of_n_kl(n: int) -> float:
    """Compute the KL of best-of-n from the base policy in nats, log n - (n-1)/n (exact without ties)."""
    return math.log(n) - (n - 1) / n


class BestOfNParams(AlgorithmParams):
    """The parameters of best-of-n: what the budget buys, and how many images are drawn at a time."""

    selected_per_prompt: int = Field(
        4,
        ge=1,
        description="images that the budget must yield for each prompt [ours: as many as others are evaluated on]",
    )
    samples_per_round: int = Field(64, ge=1, description="base samples drawn and scored per round [ours: speed only]")


@register_algorithm
class BestOfN(Selection):
    """No training: n grows with the budget, n = queries / (training prompts x ``selected_per_prompt``).

    Every prompt has its own pool of ``selected_per_prompt`` x n samples; over it the estimate for n is unbiased.
    """

    name = "best_of_n"
    title = "Best-of-n"
    summary = "no training: the proxy's favourite of n base samples, unbiased estimate, KL = log n - (n-1)/n"
    Params = BestOfNParams
    params: BestOfNParams

    def __init__(self, ctx: TrainContext, params: BestOfNParams) -> None:
        super().__init__(ctx, params)
        self.drawn = 0

    def step(self) -> dict[str, float]:
        n = min(self.params.samples_per_round, self.ctx.budget_left())
        # round robin, so that all prompts have pools of nearly the same size
        prompts = tuple(self.ctx.prompts[k % len(self.ctx.prompts)] for k in range(self.drawn, self.drawn + n))
        with torch.no_grad():
            images = self.ctx.policy.rollout(prompts, self.ctx.generators["sampling"]).images  # [n, 3, H, W]
            scores = self.ctx.proxy(images, prompts).cpu()  # [n]
        self.drawn += n
        self.last_round = Candidates(prompts, (images * 255).round().to(torch.uint8).cpu(), scores)
        return {"proxy/mean": scores.mean().item(), "proxy/std": scores.std(unbiased=False).item()}

    def candidates(self) -> Candidates:
        return self.last_round

    @property
    def n(self) -> int:
        """The smallest pool of a prompt yields ``selected_per_prompt`` images, each the best of so many."""
        return max(1, self.drawn // len(self.ctx.prompts) // self.params.selected_per_prompt)

    def weights(self, pool: int) -> Tensor:
        return best_of_n_weights(pool, self.n)

    def kl(self) -> float:
        return best_of_n_kl(self.n)

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.drawn = state["drawn"]
