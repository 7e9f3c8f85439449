"""The policy of a run folder and its rewards, as they were in the run: what sample, eval and ceiling begin with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.adapter import adapter_file
from overopt_bench.errors import RunError, UserError
from overopt_bench.lazy import torch
from overopt_bench.options import PolicySettings
from overopt_bench.types import Reward, Suite

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.config import RunConfig
    from overopt_bench.diffusion.policy import DiffusionPolicy


def untrained_policy(
    suite: Suite, settings: PolicySettings, seed: int, runtime: Runtime, rewards: Iterable[Reward] = ()
) -> DiffusionPolicy:
    """Load the base model as a run would begin with it, to be sampled: its fresh adapter has no effect.

    Args:
        suite: gives the base model and the sampler.
        settings: how it is sampled and what of it would be trained.
        seed: of the adapter's initial weights.
        runtime: where and how fast.
        rewards: what will be on the device besides; counts where micro-batches are chosen.

    Raises:
        UserError: where the suite's weights are missing.
    """
    from overopt_bench.sizing import micro_batch
    from overopt_bench.training.build import build_policy

    pipeline = suite.pipeline()
    fitting = runtime.micro_batch or micro_batch.choose_sampling(
        pipeline, settings.precision, rewards, settings.guidance_scale != 1, runtime.device
    )
    return build_policy(suite, pipeline, settings, seed, runtime.model_copy(update={"micro_batch": fitting}))


def trained_policy(
    run: Path, config: RunConfig, suite: Suite, runtime: Runtime, rewards: Iterable[Reward] = ()
) -> DiffusionPolicy:
    """Load the policy of a run as it trained: base model, precision, sampler, and the adapter that it saved.

    Args:
        run: the run's folder.
        config: the run's configuration.
        suite: the run's suite, for its base model.
        runtime: where and how fast.
        rewards: what will be on the device besides; counts where micro-batches are chosen.

    Raises:
        UserError: where the suite's weights are missing, or the adapter is or is damaged.
        RunError: where a weight of the adapter is not finite.
    """
    if not adapter_file(run / "adapter").exists():  # before the base model is loaded
        raise UserError(f"{run} has no adapter; a run saves it at its first evaluation")
    policy = untrained_policy(suite, config, config.seed, runtime, rewards)
    try:
        policy.load_adapter(run / "adapter")
    except FloatingPointError as error:
        raise RunError(f"{run} diverged: {error}") from None
    return policy


def trained_queries(run: Path, policy: DiffusionPolicy) -> int | None:
    """Tell how many queries a run had spent when it saved its adapter; None where nothing in the folder says so.

    A run that ended by its budget saved it at its end. Any other saved it beside a checkpoint, not always the newest
    one, for a run that is stopped saves no adapter; so it is the checkpoint of the same weights that tells.

    Args:
        run: the run's folder.
        policy: with the run's adapter, as ``trained_policy`` loads it.
    """
    try:
        status = json.loads((run / "status.json").read_text(encoding="utf-8"))
        if status["state"] == "complete":
            return int(status["queries"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # the checkpoints are left to ask
    own = {name: weight.cpu() for name, weight in policy.adapter_state().items()}
    for path in sorted((run / "checkpoint").glob("*.pt"), reverse=True):
        try:
            saved = torch.load(path, weights_only=True, map_location="cpu")["policy"]
            if all(torch.equal(saved[name], weight) for name, weight in own.items()):
                return int(path.stem)
        except Exception:  # a damaged pickle can raise almost anything; it tells nothing
            continue
    return None


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
