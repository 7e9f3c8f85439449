"""What every reward says of a trained policy beside its base model, on any prompts."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.commands.sample import Drawing, plan
from overopt_bench.commands.trained import restore_calibration, trained_policy
from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import RunError, UserError
from overopt_bench.lazy import torch
from overopt_bench.prompts.tidy import tidy
from overopt_bench.recording.identity import read_config
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite, rewards
from overopt_bench.types import Suite

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from overopt_bench.evaluation.splits import Split


def assess(
    run: Path, prompts: Sequence[str], names: Sequence[str], count: int, seed: int, runtime: Runtime
) -> pd.DataFrame:
    """Score ``count`` images of each prompt, drawn by the base model and by the run's adapter from the same noise.

    Rewards that are standardised on base samples are standardised as in the run, or on the same samples as it would.

    Args:
        run: a run folder with an adapter.
        prompts: the first held-out split of the run's suite where empty.
        names: rewards; where empty the proxy and the golds, and all others of a suite that evaluates all.
        count: images of each prompt.
        seed: of their noise, as in ``sample``.
        runtime: where to compute.

    Returns:
        A row per reward, the run's proxy and golds first: mean of the base, mean of the policy, the mean and the
        standard error of their paired difference (over prompts), the number of images. A reward that cannot judge the prompts
        is left out, with a line on stderr that says why.

    Raises:
        UserError: where the run cannot be sampled, or a reward that was asked for cannot judge the prompts.
        RunError: where the adapter, an image or a score is not finite.
    """
    config = read_config(run)
    suite = get_suite(config.suite, runtime.weights, config.model)
    shown = list(next(v for k, v in suite.prompts.items() if k.startswith("heldout")))
    if prompts:  # one that is given twice would be the same images twice
        kept, note = tidy(list(prompts), "--prompt")
        shown = list(kept)
        if note:
            print("warning:", note, file=sys.stderr, flush=True)
    asked = _judging(names, evaluated_rewards(suite, config.proxy, config.gold), shown, suite)
    drawings = plan(shown, count, seed)
    # what computes is imported only now, when nothing can be refused any more
    from overopt_bench.evaluation.evaluator import Evaluator, evaluate_split
    from overopt_bench.evaluation.sampler import PolicySampler

    loaded = {name: get_reward(name, suite) for name in asked}
    policy = trained_policy(run, config, suite, runtime, loaded.values())
    evaluator = Evaluator.of_policy(
        policy, suite, loaded, config.training_prompts(suite), images=0, eval_seed=config.eval_seed
    )
    restore_calibration(loaded.values(), run, evaluator.base_samples)
    split = _as_split(drawings, evaluator.sampler.noise_shape)
    try:
        after, before = (
            evaluate_split(sampler, split, loaded, suite.clip_features).scores
            for sampler in (evaluator.sampler, PolicySampler(policy, base=True))
        )
    except FloatingPointError as error:
        raise RunError(f"{error}, in {config.precision}") from None
    return _table(asked, split.prompts, before, after, {config.proxy: "proxy", **dict.fromkeys(config.gold, "gold")})


def _table(
    names: Sequence[str],
    prompts: Sequence[str],
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    roles: Mapping[str, str],
) -> pd.DataFrame:
    """Return a row for each reward, as ``assess`` describes it.

    Args:
        names: of the rewards, in the order of the rows.
        prompts: of each image.
        before: the scores ``[B]`` of the base model's images, by reward.
        after: those of the policy's, from the same noise.
        roles: what each reward is in the run, by its name.
    """
    import pandas as pd

    from overopt_bench.report.peaks import paired_difference

    rows = []
    for name in names:
        base, tuned = before[name].cpu().numpy(), after[name].cpu().numpy()
        change = paired_difference(tuned, base, prompts)
        rows.append({
            "reward": name, "role": roles.get(name, ""), "base": base.mean(), "policy": tuned.mean(),
            "change": change.mean, "error": change.error, "images": len(tuned),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _as_split(drawings: Sequence[Drawing], shape: Sequence[int]) -> Split:
    """The images that ``sample`` would draw, as an evaluation draws them."""
    from overopt_bench.evaluation.splits import Split

    noise = torch.stack([drawing.noise(shape[0] - 1, shape[1:]) for drawing in drawings], 1)
    return Split("given", tuple(d.prompt for d in drawings), tuple(d.index for d in drawings), noise)


def _judging(names: Sequence[str], usual: Sequence[str], prompts: Sequence[str], suite: Suite) -> list[str]:
    """The rewards that were asked for, else those of the usual ones that can judge the prompts.

    Raises:
        UserError: where one that was asked for cannot, or does not exist.
    """
    judging = []
    for name in dict.fromkeys(names or usual):
        try:
            cls = rewards.get(name, suite.family())
            cls.check_prompts(prompts, suite.resources)
            judging.append(cls.name)
        except UserError as error:
            if names:
                raise
            print(f"warning: {name} is left out: {error}", file=sys.stderr, flush=True)
    return judging
