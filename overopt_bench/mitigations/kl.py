"""The exact KL of the sampling path to the base model, as a penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from overopt_bench.lazy import torch
from overopt_bench.registry import register_mitigation
from overopt_bench.types import Hook, LossRows, Mitigation, MitigationParams, Trajectory, step_kl

if TYPE_CHECKING:
    from torch import Tensor


class KLParams(MitigationParams):
    """The weight of the penalty, and where it acts."""

    beta: float = Field(ge=0, allow_inf_nan=False, description="reward that a nat of KL costs; 0 changes no number")
    where: Literal["loss", "reward", "both"] = Field(
        "loss",
        description="loss: added to each trained transition's loss [DPOK, Flow-GRPO]; reward: the path's KL taken from the"
        " proxy's score; both: each transition's own in the loss, that of the steps after it in its advantage",
    )


@register_mitigation
class KL(Mitigation):
    """A penalty on the KL between the policy's transitions and the base model's, exact and in nats.

    KL_i = ||mu_theta(x_i) - mu_base(x_i)||^2 / (2 sigma_i^2), summed over the latent's dimensions; the path KL is its
    sum over the steps of a sampled chain. It costs one pass of the base model for each step where it is read.

    The gradient of the path KL has two parts: each transition's own KL at the states that were sampled, and where the
    chain goes from there. ``loss`` is the first part, weighed against normalised advantages; ``reward`` is the second,
    in the proxy's own units, before advantages are formed; ``both`` is the whole gradient, against advantages. Where the
    sampler itself is differentiated (AlignProp) ``loss`` and ``reward`` each are the whole gradient, of the last steps.
    """

    name = "kl"
    summary = "the exact KL of the sampling path to the base model, in the loss or in the reward"
    Params = KLParams
    reads_kl = True
    params: KLParams

    @classmethod
    def uses(cls, params: KLParams) -> frozenset[Hook]:
        """Say where it acts; with beta 0 it does not act, so that its passes are saved too."""
        places: dict[str, frozenset[Hook]] = {
            "loss": frozenset({"loss"}), "reward": frozenset({"reward"}), "both": frozenset({"loss", "advantages"})
        }  # fmt: skip
        return places[params.where] if params.beta else frozenset()

    def reward(self, rewards: Tensor, trajectory: Trajectory) -> Tensor:
        """Take beta times the path KL from each reward ``[B]``."""
        return rewards - self.params.beta * step_kl(trajectory).sum(1)

    def advantages(self, advantages: Tensor, trajectory: Trajectory) -> Tensor:
        """Take beta times the KL of the steps after each step from its advantage ``[B, T]``."""
        kl = step_kl(trajectory)
        later = torch.zeros_like(kl)
        later[:, :-1] = kl[:, 1:].flip(1).cumsum(1).flip(1)  # what a step can still change, its own KL is not among it
        return advantages - self.params.beta * later

    def loss(self, rows: LossRows) -> Tensor:
        """Return beta times the KL of each row ``[m]``."""
        return rows.kl * self.params.beta
