"""The scale of rewards that are standardised on base samples: measured once, then read from the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from overopt_bench.compute.processes import World
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.types import Reward

Calibration = dict[str, dict[str, float]]  # what each reward learned, by the reward's name


def calibrate(
    rewards: Iterable[Reward],
    saved: Mapping[str, dict[str, float]],
    evaluator: Evaluator,
    world: World,
    measured: Callable[[dict[str, Any]], None],
) -> Calibration:
    """Standardise the rewards that need it: as the checkpoint says, else on base samples of the training prompts.

    Args:
        rewards: all that the run evaluates.
        saved: what the checkpoint says; empty where there is none.
        evaluator: draws the base samples.
        world: the processes of the run.
        measured: takes a row of the record for each reward that was measured now.

    Returns:
        What to save in the next checkpoint.
    """
    calibration = dict(saved)
    asking = [reward for reward in rewards if reward.needs_base_samples]
    if absent := [reward for reward in asking if reward.name not in calibration]:
        images, prompts = evaluator.base_samples()
        for reward in absent:
            # one process's values for all: a reward must not depend on the card that scores
            facts = calibration[reward.name] = world.on_main(partial(reward.calibrate, images, prompts))
            measured({"reward": reward.name, "images": len(images), **facts})
    for reward in asking:
        reward.load_calibration(calibration[reward.name])
    return calibration
