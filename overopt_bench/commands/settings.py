"""From a user's options to a checked run: plugins, suite, device, configuration. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overopt_bench.compute.runtime import ATTENTION, Runtime
from overopt_bench.config import RunConfig, check_prompts, read_config_file, resolve
from overopt_bench.errors import UserError, unknown_name
from overopt_bench.evaluation.measuring import probe_foreign_metrics
from overopt_bench.plugins import Plugin, load_plugins, probe_foreign_rewards
from overopt_bench.presets import read_presets
from overopt_bench.prompts.files import read_prompt_file
from overopt_bench.prompts.tidy import tidy
from overopt_bench.registry import evaluated_rewards, get_suite, suites


def choose_suite(name: str | None, weights: Path | None = None, model: str | None = None) -> tuple[str, str]:
    """The suite to use and why.

    Raises:
        UserError: where the suite asked for does not exist, or a folder of weights is none.
    """
    if weights is not None and not weights.is_dir():
        raise UserError(f"--weights {weights}: no such folder")
    if name is not None:
        get_suite(name, weights, model)
        return name, "as asked"
    if model is not None:
        return next(other for other in suites.names() if suites.get(other).takes_model()), "--model was given"
    if "sd14" not in suites.names():
        return "mini", "the default"
    missing = get_suite("sd14", weights).missing()
    return ("sd14", "it can run here") if missing is None else ("mini", missing)


def choose_device(name: str | None) -> str:
    """``cuda`` where there is one and nothing else is asked.

    Raises:
        UserError: for a device that does not exist here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if name == "cpu" or (kind == "cuda" and (not index or index.isdigit())):
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise UserError(
                f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices here; use --device cpu"
            )
        return name
    raise UserError(f"--device {name}: allowed are cpu, cuda and cuda:N")


@dataclass(frozen=True)
class Options:
    """A user's options before they are checked: the command line over the file, that over presets.

    ``notes`` are what the user should be told about how they were read, one line each.
    """

    given: dict[str, Any]
    per_algorithm: dict[str, dict[str, Any]]
    plugins: tuple[Plugin, ...]
    runtime: Runtime
    suite_reason: str
    notes: tuple[str, ...] = ()

    def config(self, algo: str | None, proxy: str | None, seed: int | None, params: Mapping[str, Any]) -> RunConfig:
        """The checked configuration of one run.

        Raises:
            UserError: for whatever is wrong.
        """
        own = {"algo": algo, "proxy": proxy, "seed": seed}
        merged = {**self.given, **{k: v for k, v in own.items() if v is not None}}
        if self.runtime.device == "cpu":  # where half precision saves no time
            merged = {"precision": "float32", **merged}
        base = merged.get("params") or {}
        if not isinstance(base, Mapping):
            raise UserError(f"params must be a mapping such as {{lr: 1.0e-4}}, not {base!r}")
        preset = self.per_algorithm.get(str(merged.get("algo")), {})
        return resolve({**merged, "params": {**preset, **base, **params}})


def read_options(
    given: Mapping[str, Any], plugin: Iterable[str] | None, config: Path | None, preset: Iterable[str] | None,
    runtime: Runtime, prompt_column: str | None = None,
) -> Options:  # fmt: skip
    """Load plugins, presets and files, choose the suite. The command line wins over the file, that over presets.

    ``prompt_column`` is that of a file of prompts; see ``read_prompt_file``.

    Raises:
        UserError: for whatever is wrong with them.
    """
    base = read_presets(preset or ())
    per_algorithm, micro_batch = base.pop("algorithms", {}), base.pop("micro_batch", None)
    file = {**base, **({} if config is None else read_config_file(Path(config)))}
    from_file = file.pop("plugin", None) or []
    files = [from_file] if isinstance(from_file, str) else list(from_file)
    plugins = load_plugins([*files, *(plugin or [])])
    values = {**file, **{k: v for k, v in given.items() if v not in (None, [], ())}}
    notes = _read_prompts(values, prompt_column)
    suite, reason = choose_suite(values.get("suite"), runtime.weights, values.get("model"))
    if runtime.micro_batch is None:
        runtime = replace(runtime, micro_batch=micro_batch)
    return Options({**values, "suite": suite}, per_algorithm, plugins, runtime, reason, tuple(notes))


def _read_prompts(values: dict[str, Any], column: str | None) -> list[str]:
    """Put the training prompts into ``values``, from the file that they may name; returns what to tell the user."""
    given, where, notes = values.get("train_prompts"), "train_prompts", list[str]()
    if isinstance(given, str):
        where = f"--prompts {given}"
        given, notes = read_prompt_file(Path(given), column)
    elif column is not None:
        raise UserError(f"--prompt-column {column}: there is no file of prompts; give --prompts FILE")
    if given:
        values["train_prompts"], note = tidy(given, where)
        notes += [note] if note else []
    return notes


def probe(config: RunConfig, runtime: Runtime) -> None:
    """Try the prompts, and the rewards and metrics that come from outside this package, before anything is written."""
    suite = get_suite(config.suite, runtime.weights, config.model)
    check_prompts(config, suite)
    evaluated = evaluated_rewards(suite, config.proxy, config.gold)
    probe_foreign_rewards(evaluated, suite, config.training_prompts(suite))
    probe_foreign_metrics(suite, evaluated, config.training_prompts(suite), config.num_steps)


def make_runtime(device: str | None, weights: Path | None = None, **speed: Any) -> Runtime:
    """Where to compute; see ``Runtime``.

    Raises:
        UserError: for a device that does not exist here, or a micro-batch below 1.
    """
    if speed.get("micro_batch") is not None and speed["micro_batch"] < 1:
        raise UserError(f"--micro-batch {speed['micro_batch']}: must be at least 1")
    if speed.get("attention") not in (None, *ATTENTION):
        raise unknown_name("--attention", speed["attention"], ATTENTION)
    return Runtime(choose_device(device), None if weights is None else Path(weights), **speed)
