"""What every reward says of a trained policy beside its base model, on any prompts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from overopt_bench.draw import read_config, sample_images, trained_pipeline
from overopt_bench.errors import UserError
from overopt_bench.prompts.tidy import tidy
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite, rewards
from overopt_bench.runtime import Runtime
from overopt_bench.stats import paired_difference
from overopt_bench.types import Suite


@torch.no_grad()
def assess(
    run: Path, prompts: Sequence[str], names: Sequence[str], count: int, seed: int, runtime: Runtime
) -> pd.DataFrame:
    """Score ``count`` images of each prompt, drawn by the base model and by the run's adapter from the same noise.

    Args:
        run: a run folder with an adapter. prompts: the first held-out split of the run's suite where empty.
        names: rewards; where empty the proxy and the golds, and all others of a suite that evaluates all.

    Returns:
        A row per reward, the run's proxy and golds first: mean of the base, mean of the policy, the mean and the
        standard error of their paired difference, the number of images. A reward that cannot judge the prompts
        is left out, with a line on stderr that says why.

    Raises:
        UserError: where the run cannot be sampled, or a reward that was asked for cannot judge the prompts.
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
    pipeline = trained_pipeline(run, config, runtime)
    tuned = sample_images(pipeline, config, words, count, seed)
    pipeline.unload_lora_weights()
    base = sample_images(pipeline, config, words, count, seed)
    repeated = [word for word in words for _ in range(count)]
    roles = {config.proxy: "proxy", **dict.fromkeys(config.gold, "gold")}
    rows = []
    for name in asked:
        reward = get_reward(name, suite)
        reward.calibrate(base, repeated)
        before, after = (reward(images, repeated).cpu().numpy() for images in (base, tuned))
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
            rewards.get(name, suite.family()).check_prompts(prompts, suite)
            able.append(name)
        except UserError as error:
            if names:
                raise
            print(f"warning: {name} is left out: {error}", file=sys.stderr, flush=True)
    return able
