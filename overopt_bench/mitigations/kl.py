"""The exact KL of the sampling path to the base model, as a penalty."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from overopt_bench.registry import register_mitigation
from overopt_bench.types import Hook, LossRows, Mitigation, MitigationParams, Trajectory, path_kl


class KLParams(MitigationParams):
    """The weight of the penalty, and where it acts."""

    beta: float = Field(ge=0, allow_inf_nan=False, description="reward that a nat of KL costs; 0 changes no number")
    where: Literal["loss", "reward"] = Field(
        "loss",
        description="loss: added to each trained transition's loss [DPOK, Flow-GRPO]; reward: the whole path's KL taken"
        " from the proxy's score [Gao et al.]",
    )


@register_mitigation
class KL(Mitigation):
    """A penalty on the KL between the policy's transitions and the base model's, exact and in nats.

    KL_i = ||mu_theta(x_i) - mu_base(x_i)||^2 / (2 sigma_i^2), summed over the latent's dimensions; the path KL is its
    sum over the steps of a sampled chain. It costs one pass of the base model for each step where it is read.

    In the loss of policy gradients it moves each transition towards the base model's at the sampled states, weighed
    against normalised advantages; in the reward, before advantages are formed, it counts where a chain goes, in the
    proxy's own units. Where the sampler itself is differentiated (AlignProp) both are one gradient, of the last steps.
    """

    name = "kl"
    summary = "the exact KL of the sampling path to the base model, in the loss or in the reward"
    Params = KLParams
    reads_kl = True

    @classmethod
    def uses(cls, params: KLParams) -> frozenset[Hook]:
        """Say where it acts; with beta 0 it does not act, so that its passes are saved too."""
        return frozenset({params.where} if params.beta else ())

    def reward(self, rewards: Tensor, trajectory: Trajectory) -> Tensor:
        """Take beta times the path KL from each reward ``[B]``."""
        return rewards - self.params.beta * path_kl(trajectory)

    def loss(self, rows: LossRows) -> Tensor:
        """Return beta times the KL of each row ``[m]``."""
        return rows.kl * self.params.beta
