"""What ``ceiling`` is asked: whose policy, which proxies and prompts, settled or refused before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.commands.requests import Questions
from overopt_bench.commands.settings import choose_suite, parse_names
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, check_split, resolve_params
from overopt_bench.errors import UserError
from overopt_bench.options import PolicySettings
from overopt_bench.recording.identity import read_config
from overopt_bench.registry import algorithms, get_suite, rewards

if TYPE_CHECKING:
    from overopt_bench.types import Suite

FOLDS = 5  # of chains or prompts; each needs a prompt, and a prompt two images, for its returns to differ


@dataclass(frozen=True)
class Subject:
    """What is measured, with every question settled.

    Attributes:
        suite: gives the base model, the prompts and the rewards.
        reason: why this suite, in words.
        settings: how the policy is sampled.
        run: the run folder whose policy it is; None for the base model.
        config: that run's configuration.
        proxies: names of rewards.
        split: what the prompts are called.
        prompts: different ones, for each fold one at least.
        trained_steps: how many steps, from the noisiest on, are trained on.
    """

    suite: Suite
    reason: str
    settings: PolicySettings
    run: Path | None
    config: RunConfig | None
    proxies: tuple[str, ...]
    split: str
    prompts: tuple[str, ...]
    trained_steps: int


def choose(asked: Questions, suite: str | None, model: str | None, runtime: Runtime) -> Subject:
    """Settle what is measured, or refuse what cannot be asked; loads no weights.

    Args:
        asked: what the user wants to know.
        suite: the name that the user gave.
        model: the base model that the user gave.
        runtime: where and how fast.

    Raises:
        UserError: for an unknown proxy, split or suite, prompts that a proxy cannot judge, too few prompts or images, a
            file that cannot be written, or a run that does not fit the question or has no policy of its own.
    """
    config = None if asked.run is None else run_of(asked.run, suite, model, asked.num_steps)
    if config is not None:
        suite, model = config.suite, config.model
    name, reason = choose_suite(suite, runtime.weights, model)
    made = get_suite(name, runtime.weights, model)
    proxies = proxies_of(asked.proxy, made, config)
    split, prompts = prompts_of(asked.train_split, made, config)
    check(asked, made, proxies, split, prompts)
    settings, skipped = config or base_settings(made, asked.num_steps, runtime), asked.skip_last_steps
    if skipped is None:  # an algorithm without the parameter trains on all steps
        skipped = skipped_steps(made) if config is None else int(config.params.get("skip_last_steps", 0))
    return Subject(
        made, reason if config is None else "the run's", settings, asked.run, config, proxies, split, prompts,
        max(1, settings.num_steps - skipped),
    )  # fmt: skip


def run_of(run: Path, suite: str | None, model: str | None, num_steps: int | None) -> RunConfig:
    """Read the configuration of a run whose policy is measured, beside what the user gave.

    Raises:
        UserError: where the folder is no run, its algorithm trains no policy, or an option contradicts it.
    """
    config = read_config(run)
    for option, given, own in (
        ("--suite", suite, config.suite), ("--model", model, config.model), ("--num-steps", num_steps, config.num_steps)
    ):  # fmt: skip
        if given is not None and given != own:
            raise UserError(
                f"{option} {given} contradicts --run {run}, whose policy was trained with {own or 'the model of its suite'};"
                f" leave out {option}, or leave out --run to measure the base model"
            )
    if algorithms.get(config.algo).role != "trains":
        raise UserError(
            f"--run {run}: {config.algo} trains no policy, so there is no adapter to measure; leave out --run and give"
            f" --suite {config.suite} --proxy {config.proxy} to measure the base model"
        )
    return config


def base_settings(suite: Suite, num_steps: int | None, runtime: Runtime) -> PolicySettings:
    """Return the settings with which a run of the suite would begin."""
    changed: dict[str, Any] = {"num_steps": num_steps or suite.defaults.num_steps}
    if runtime.device == "cpu":  # where half precision saves no time
        changed["precision"] = "float32"
    return suite.defaults.model_copy(update=changed)


def proxies_of(given: str | None, suite: Suite, config: RunConfig | None) -> tuple[str, ...]:
    """Return the names of the rewards that are asked for, else the run's proxy.

    Raises:
        UserError: for an unknown one, or where there is none.
    """
    if given is not None:
        names = parse_names("--proxy", given)
    elif config is not None:
        names = [config.proxy]
    else:
        raise UserError("--proxy is required where no --run gives it; `overopt-bench list rewards` shows what there is")
    return tuple(dict.fromkeys(rewards.canonical(name, suite.family()) for name in names))


def prompts_of(given: str | None, suite: Suite, config: RunConfig | None) -> tuple[str, tuple[str, ...]]:
    """Return what the prompts are called, and the different ones: of the split that is asked for, else the run's own.

    Raises:
        UserError: for a split that does not exist or is held out.
    """
    if config is not None and given is None:
        name = "the run's own prompts" if config.train_prompts else config.train_split
        return name, tuple(dict.fromkeys(config.training_prompts(suite)))
    split = given or "train"
    check_split(type(suite), split)
    return split, tuple(dict.fromkeys(suite.prompts[split]))


def check(asked: Questions, suite: Suite, proxies: Sequence[str], split: str, prompts: Sequence[str]) -> None:
    """Refuse too little to measure, a file that cannot be written, and prompts that a proxy cannot judge.

    Raises:
        UserError: for each of these.
    """
    if len(prompts) < FOLDS:
        raise UserError(
            f"the split {split!r} of {suite.name} has {len(prompts)} prompts; at least {FOLDS} are needed, one for"
            " each fold of the cross-validation"
        )
    if asked.images < 2 * FOLDS:
        raise UserError(
            f"--images {asked.images} is too few: at least {2 * FOLDS} are needed, two of each of {FOLDS} prompts;"
            " numbers to rely on need about 1,000"
        )
    if asked.out is not None and asked.out.suffix not in (".json", ".csv"):
        raise UserError(f"--out {asked.out}: allowed are files that end in .json or .csv")
    if asked.out is not None and not asked.out.parent.is_dir():
        raise UserError(f"--out {asked.out}: there is no folder {asked.out.parent}; make it first")
    family = suite.family()
    for name in proxies:
        if rewards.known() & {(family, name), (None, name)} or ":" in name:
            rewards.get(name, family).check_prompts(prompts, suite.resources)


def skipped_steps(suite: Suite) -> int:
    """Give the most last steps that the suite lets any algorithm skip; 0 where none knows such a parameter."""
    known = [name for name in algorithms.names() if "skip_last_steps" in algorithms.get(name).Params.model_fields]
    return max((resolve_params(name, suite.name, {})["skip_last_steps"] for name in known), default=0)
