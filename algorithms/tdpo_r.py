"""TDPO-R: TDPO whose critic forgets, by resets of its *active* neurons (Zhang et al. 2024, arXiv 2402.08552)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from overopt_bench.algorithms.neurons import ResetMode
from overopt_bench.algorithms.tdpo import TDPO, TDPOParams
from overopt_bench.registry import register_algorithm


class TDPORParams(TDPOParams):
    """TDPO's parameters and those of the reset."""

    reset: ResetMode = Field(
        "active",
        description="which neurons: active [paper], dormant [ReDo], random (as many as active, the control), all, none",
    )
    reset_period: int = Field(10, ge=1, description="epochs between resets [tdpo code]")
    dormant_threshold: float = Field(0.0, ge=0, description="score at or below which a neuron is dormant [tdpo code]")
    reset_outgoing: Literal["noise", "zero"] = Field(
        "noise", description="outgoing weights: fresh noise [tdpo code] or zero, which keeps the function [ReDo]"
    )
    reset_adam_step: Literal["keep", "zero"] = Field(
        "keep", description="Adam's step count of touched tensors: keep [tdpo code] or zero [ReDo port]"
    )

    # the published ten resets a run: every 10 of 100 epochs there, every 3 of 32 here
    mini: ClassVar[dict[str, Any]] = {**TDPOParams.mini, "reset_period": 3}


@register_algorithm
class TDPOR(TDPO):
    """TDPO with critic resets; everything else is TDPO, to the letter.

    The paper: dormant neurons of the critic regularise, active ones carry the primacy bias. The published code
    resets nearly the whole critic, for at threshold 0 few neurons are dormant: compare ``reset=random`` and
    ``reset=all``. Its critic has no activations, so dormancy is probed through a ReLU that the critic does not
    have; see ``critic_activation``. Reset noise comes from the run's own generator (the code repeats the same).
    """

    name = "tdpo_r"
    summary = "TDPO with periodic resets of the critic's active neurons (or dormant, random, all)"
    Params = TDPORParams
