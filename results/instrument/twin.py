"""DDPO once more under another name, with sampling noise of its own: what an A/A test compares DDPO with."""

from __future__ import annotations

from overopt_bench.algorithms.ddpo import DDPO, DDPOParams
from overopt_bench.registry import register_algorithm
from overopt_bench.seeding import stable_seed
from overopt_bench.types import TrainContext


@register_algorithm
class Twin(DDPO):
    """DDPO whose chains are drawn from another stream; prompts, the initial adapter and the shuffles are the seed's."""

    name = "ddpo_twin"
    title = "DDPO's twin"
    summary = "ddpo with another stream of sampling noise, for an A/A test"

    def __init__(self, ctx: TrainContext, params: DDPOParams) -> None:
        super().__init__(ctx, params)
        stream = ctx.generators["sampling"]
        stream.manual_seed(stable_seed("twin", stream.initial_seed()))
