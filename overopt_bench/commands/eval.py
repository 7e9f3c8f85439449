"""What every reward says of a trained policy beside its base model, on any prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from overopt_bench.commands.sample import plan, read_config, sample_images, trained_policy
from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import RunError, UserError
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.evaluation.scoring import checked
from overopt_bench.prompts.tidy import tidy
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite, rewards
from overopt_bench.report.statistics import paired_difference
from overopt_bench.types import Reward, Suite


@torch.no_grad()
def assess(
    run: Path, prompts: Sequence[str], names: Sequence[str], count: int, seed: int, runtime: Runtime
) -> pd.DataFrame:
    """Score ``count`` images of each prompt, drawn by the base model and by the run's adapter from the same noise.

    Rewards that are standardised on base samples are standardised as in the run, or on the same samples as it would.

    Args:
        run: a run folder with an adapter. prompts: the first held-out split of the run's suite where empty.
        names: rewards; where empty the proxy and the golds, and all others of a suite that evaluates all.

    Returns:
        A row per reward, the run's proxy and golds first: mean of the base, mean of the policy, the mean and the
        standard error of their paired difference, the number of images. A reward that cannot judge the prompts
        is left out, with a line on stderr that says why.

    Raises:
        UserError: where the run cannot be sampled, or a reward that was asked for cannot judge the prompts.
        RunError: where the adapter, an image or a score is not finite.
    """
    config = read_config(run)
    suite = get_suite(config.suite, runtime.weights, config.model)
    words = list(next(v for k, v in suite.prompts.items() if k.startswith("heldout")))
    if prompts:  # one that is given twice would be the same images twice
        kept, note = tidy(list(prompts), "--prompt")
        words = list(kept)
        if note:
            print("warning:", note, file=sys.stderr, flush=True)
    asked = _able(names, evaluated_rewards(suite, config.proxy, config.gold), words, suite)
    drawings = plan(words, count, seed)
    loaded = [get_reward(name, suite) for name in asked]
    policy = trained_policy(run, config, suite, runtime, loaded)
    restore_calibration(loaded, run, lambda: Evaluator(suite, policy, {}, config).base_samples())
    tuned = torch.cat([images for _, images in sample_images(policy, drawings)])
    with policy.base():
        base = torch.cat([images for _, images in sample_images(policy, drawings)])
    repeated = [drawing.prompt for drawing in drawings]
    roles = {config.proxy: "proxy", **dict.fromkeys(config.gold, "gold")}
    rows = []
    for name, reward in zip(asked, loaded, strict=True):
        try:
            before, after = (
                checked(reward(images, repeated), name, repeated).cpu().numpy() for images in (base, tuned)
            )
        except FloatingPointError as error:
            raise RunError(str(error)) from None
        change = paired_difference(after, before)
        rows.append({
            "reward": name, "role": roles.get(name, ""), "base": before.mean(), "policy": after.mean(),
            "change": change.mean, "error": change.error, "images": len(after),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _able(names: Sequence[str], usual: Sequence[str], prompts: Sequence[str], suite: Suite) -> list[str]:
    """The rewards that were asked for, else those of the usual ones that can judge the prompts.

    Raises:
        UserError: where one that was asked for cannot, or does not exist.
    """
    able = []
    for name in dict.fromkeys(names or usual):
        try:
            rewards.get(name, suite.family()).check_prompts(prompts, suite.resources)
            able.append(name)
        except UserError as error:
            if names:
                raise
            print(f"warning: {name} is left out: {error}", file=sys.stderr, flush=True)
    return able


def restore_calibration(
    rewards: Iterable[Reward], run: Path, base_samples: Callable[[], tuple[Tensor, Sequence[str]]]
) -> None:  # fmt: skip
    """Give rewards with ``needs_base_samples`` the values that the run recorded.

    Where it recorded none they see the base samples that it would have shown them, which stderr says.
    """
    recorded, absent = recorded_calibrations(run), []
    for reward in rewards:
        if reward.needs_base_samples and reward.name in recorded:
            reward.load_calibration(recorded[reward.name])
        elif reward.needs_base_samples:
            absent.append(reward)
    if absent:
        images, prompts = base_samples()
        names = ", ".join(reward.name for reward in absent)
        print(
            f"note: {names} is not in the run's record; standardised here on {len(images)} base samples of its training prompts",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        for reward in absent:
            reward.calibrate(images, prompts)


def recorded_calibrations(run: Path) -> dict[str, dict[str, Any]]:
    """The "calibration" events of a run by their reward.

    Raises:
        UserError: where the record cannot be read.
    """
    path = run / "metrics.jsonl"
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if '"calibration"' in line]
        return {str(event["reward"]): event for event in map(json.loads, lines) if event["event"] == "calibration"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__})") from None
