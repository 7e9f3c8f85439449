"""From a user's options to a checked run: plugins, suite, device, configuration. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt_bench.commands.command import Arguments, checked
from overopt_bench.commands.requests import Sources
from overopt_bench.compute.cards import cards
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, check_prompts, parse_set, read_config_file, resolve
from overopt_bench.errors import UserError
from overopt_bench.evaluation.measuring import probe_foreign_metrics
from overopt_bench.options import RunFolder, RunSettings
from overopt_bench.plugins import Plugin, load_plugins, probe_foreign_rewards
from overopt_bench.presets import read_presets
from overopt_bench.prompts.files import read_prompt_file
from overopt_bench.prompts.tidy import tidy
from overopt_bench.registry import evaluated_rewards, get_suite, suites


def choose_suite(name: str | None, weights: Path | None = None, model: str | None = None) -> tuple[str, str]:
    """Choose the suite to use, and say why: the one asked for, else the best ranked that can run here.

    Raises:
        UserError: where the suite asked for does not exist, a folder of weights is none, or no suite may be the default.
    """
    if weights is not None and not weights.is_dir():
        raise UserError(f"--weights {weights}: no such folder")
    if name is not None:
        get_suite(name, weights, model)
        return name, "as asked"
    if model is not None:
        return next(other for other in suites.names() if suites.get(other).takes_model()), "--model was given"
    ranked = [other for other in suites.names() if suites.get(other).default_rank > 0]
    ranked.sort(key=lambda other: -suites.get(other).default_rank)
    if not ranked:
        raise UserError(f"--suite is required; allowed: {', '.join(suites.names())}")
    absent = []
    for other in ranked[:-1]:
        missing = get_suite(other, weights).missing()
        if missing is None:
            return other, "it can run here"
        absent.append(missing)
    return ranked[-1], "; ".join(absent) or "the default"


def choose_device(name: str | None) -> str:
    """``cuda`` where there is one and nothing else is asked.

    Raises:
        UserError: for a device that does not exist here.
    """
    if name is None:
        return "cuda" if cards() else "cpu"
    kind, _, index = name.partition(":")
    if name == "cpu" or (kind == "cuda" and (not index or index.isdigit())):
        if kind == "cuda" and int(index or 0) >= cards():
            raise UserError(f"--device {name}: torch finds {cards()} CUDA devices here; use --device cpu")
        return name
    raise UserError(f"--device {name}: allowed are cpu, cuda and cuda:N")


def parse_names(option: str, text: str) -> list[str]:
    """``"a,b"`` to distinct names.

    Raises:
        UserError: where there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} needs at least one name")
    return names


def pairs_for(algo: str, algos: Sequence[str], pairs: Iterable[str]) -> list[str]:
    """Return the ``--set`` pairs of one algorithm: ``lr=...`` is for all, ``ddpo.lr=...`` for ddpo.

    Args:
        algo: the algorithm's name.
        algos: the names of all algorithms of the command.
        pairs: what was given, each ``[ALGORITHM.]NAME=VALUE``.

    Raises:
        UserError: for an algorithm that is not one of them.
    """
    own = []
    for pair in pairs:
        owner, dot, _ = pair.partition("=")[0].partition(".")
        if not dot:
            own.append(pair)
        elif owner not in algos:
            raise UserError(f"--set {pair}: {owner!r} is not among the algorithms {', '.join(algos)}")
        elif owner == algo:
            own.append(pair[len(owner) + 1 :])
    return own


@dataclass(frozen=True)
class Options:
    """A user's options, read and merged: the command line over the file, that over presets.

    Attributes:
        given: the settings of runs that are neither identity nor parameters, unchecked; the suite is among them.
        pairs: what ``--set`` was given.
        per_algorithm: parameters, and knobs of ``Runtime``, that presets give to single algorithms.
        plugins: the files that were loaded.
        runtime: where and how fast to compute; the user's own values.
        recommended: knobs of ``Runtime`` that presets give to all algorithms.
        suite_reason: why this suite, for the first line.
        notes: what the user should be told about how the options were read, one line each.
    """

    given: dict[str, Any]
    pairs: Sequence[str]
    per_algorithm: dict[str, dict[str, Any]]
    plugins: tuple[Plugin, ...]
    runtime: Runtime
    recommended: dict[str, Any]
    suite_reason: str
    notes: tuple[str, ...] = ()

    def config(
        self, algo: str | None, proxy: str | None, seed: int | None, *, among: Sequence[str] = (),
        params: Mapping[str, Any] | None = None, **fixed: Any,
    ) -> RunConfig:  # fmt: skip
        """Return the checked configuration of one run.

        Args:
            algo: the algorithm's name; None where the options have it.
            proxy: the proxy's name; None where the options have it.
            seed: the run's seed; None for the options' or 0.
            among: the algorithms of a command that runs several, for ``--set ALGORITHM.NAME=VALUE``.
            params: parameters of the algorithm over those of files and presets, under the user's ``--set``.
            fixed: settings that win over the user's.

        Raises:
            UserError: for whatever is wrong.
        """
        own = {"algo": algo, "proxy": proxy, "seed": seed, **fixed}
        merged = {**self.given, **{k: v for k, v in own.items() if v is not None}}
        if self.runtime.device == "cpu":  # where half precision saves no time
            merged = {"precision": "float32", **merged}
        base = merged.get("params") or {}
        if not isinstance(base, Mapping):
            raise UserError(f"params must be a mapping such as {{lr: 1.0e-4}}, not {base!r}")
        name = str(merged.get("algo"))
        preset = {k: v for k, v in self.per_algorithm.get(name, {}).items() if k not in Runtime.model_fields}
        pairs = parse_set(pairs_for(name, among or [name], self.pairs))
        return resolve({**merged, "params": {**preset, **base, **(params or {}), **pairs}})

    def runtime_for(self, algo: str) -> Runtime:
        """Return how to compute the runs of an algorithm: what the user gave, else what presets recommend for it.

        Raises:
            UserError: where a preset's value is out of range.
        """
        own = {k: v for k, v in self.per_algorithm.get(algo, {}).items() if k in Runtime.model_fields}
        asked = self.runtime.model_dump(exclude_unset=True, exclude_none=True)
        return checked(Runtime, {**self.recommended, **own, **asked})


def read_options(arguments: Arguments, elsewhere: bool = False) -> Options:
    """Load plugins, presets and files, choose suite and device. The command line wins over the file, that over presets.

    Args:
        arguments: what the user gave.
        elsewhere: whether runs are computed on another machine, whose devices are not known here.

    Raises:
        UserError: for whatever is wrong with them.
    """
    sources = arguments.make(Sources)
    presets = read_presets(sources.preset)
    per_algorithm = presets.pop("algorithms", {})
    recommended = {name: presets.pop(name) for name in Runtime.model_fields if name in presets}
    file = {} if sources.config is None else read_config_file(sources.config)
    from_file = file.pop("plugin", None) or []
    plugins = load_plugins([*([from_file] if isinstance(from_file, str) else from_file), *sources.plugin])
    values = {**presets, **file, **arguments.of(RunSettings, RunFolder, Runtime)}
    runtime = make_runtime({name: values.pop(name) for name in Runtime.model_fields if name in values}, elsewhere)
    if sources.prompts is not None:
        values["train_prompts"] = str(sources.prompts)
    notes = _read_prompts(values, sources.prompt_column)
    suite, reason = choose_suite(values.get("suite"), runtime.weights, values.get("model"))
    given = {**values, "suite": suite}
    return Options(given, sources.set, per_algorithm, plugins, runtime, recommended, reason, tuple(notes))


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


def make_runtime(values: Mapping[str, Any], elsewhere: bool = False) -> Runtime:
    """Return where and how fast to compute: what a user gave of ``Runtime``, on a device that exists.

    Args:
        values: what the user gave.
        elsewhere: whether the device that the user names is another machine's.

    Raises:
        UserError: for a device that does not exist here, or a value out of range.
    """
    runtime = checked(Runtime, values)
    if elsewhere and values.get("device"):
        return runtime
    return checked(Runtime, {**runtime.model_dump(exclude_unset=True), "device": choose_device(values.get("device"))})
