"""TDPO-R: TDPO whose critic forgets, by resets of its *active* neurons (Zhang et al. 2024, arXiv 2402.08552)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from overopt_bench.algorithms.dormancy import ResetMode, choose_units, reset_units
from overopt_bench.algorithms.tdpo import TDPO, TDPOParams
from overopt_bench.registry import register_algorithm

if TYPE_CHECKING:
    from torch import Tensor


class TDPORParams(TDPOParams):
    """TDPO's parameters and those of the reset."""

    reset: ResetMode = Field(
        "active",
        description="which neurons: active [paper], dormant [ReDo], random (as many as active, the control), all, none",
    )
    reset_period: int = Field(
        1000,
        ge=1,
        description="critic steps from a reset to the next, which comes at the end of the epoch that completes them"
        " [tdpo code: 10 epochs of 100]",
    )
    dormant_threshold: float = Field(0.0, ge=0, description="score at or below which a neuron is dormant [tdpo code]")
    reset_outgoing: Literal["noise", "zero"] = Field(
        "noise", description="outgoing weights: fresh noise [tdpo code] or zero, which keeps the function [ReDo]"
    )
    reset_adam_step: Literal["keep", "zero"] = Field(
        "keep", description="Adam's step count of touched tensors: keep [tdpo code] or zero [ReDo port]"
    )


@register_algorithm
class TDPOR(TDPO):
    """TDPO with critic resets; everything else is TDPO, to the letter.

    The paper: dormant neurons of the critic regularise, active ones carry the primacy bias. The published code
    resets nearly the whole critic, for at threshold 0 few neurons are dormant: compare ``reset=random`` and
    ``reset=all``. Its critic has no activations, so dormancy is probed through a ReLU that the critic does not
    have; see ``critic_activation``. Reset noise comes from the run's own generator (the code repeats the same).
    """

    name = "tdpo_r"
    title = "TDPO-R"
    summary = "TDPO with periodic resets of the critic's active neurons (or dormant, random, all)"
    Params = TDPORParams
    params: TDPORParams

    def end_of_epoch(self, features: Tensor, returns: Tensor) -> None:
        super().end_of_epoch(features, returns)
        if self.params.reset != "none" and self.steps_since_reset >= self.params.reset_period:
            self.reset_critic()
            self.steps_since_reset = 0

    def reset_critic(self) -> None:
        """Draw the chosen hidden neurons of the critic anew, and record the critic before and after."""
        self.dormancy.note("before_reset")
        generator = self.ctx.generators["critic"]
        # a neuron is dormant where its mean activation, over its layer's mean, is at most the threshold (ReDo);
        # the paper resets the others: "active" is the complement of the dormant
        dormant = self.dormancy.dormant(self.params.dormant_threshold)
        chosen = [choose_units(layer, self.params.reset, generator) for layer in dormant]
        count = reset_units(
            self.critic.linear_layers(), chosen, self.critic_optimizer.adamw, self.critic.std, generator,
            outgoing=self.params.reset_outgoing, adam_step=self.params.reset_adam_step,
        )  # fmt: skip
        self.dormancy.note("after_reset", reset_units=count)
