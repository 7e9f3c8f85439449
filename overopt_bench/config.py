"""Everything that determines a run, checked before anything heavy is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import Field, ValidationError

from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import UserError, explain, unknown_name
from overopt_bench.options import RunFolder, RunIdentity, RunSettings, note, option
from overopt_bench.prompts.tidy import overlap, tidy
from overopt_bench.registry import algorithms, evaluated_rewards, get_suite, mitigations, rewards, suites
from overopt_bench.text import read_text, read_value

if TYPE_CHECKING:
    from overopt_bench.types import Algorithm, Suite

MEMORY_PARAMS = frozenset({"micro_batch", "checkpoint"})  # parameters in early records; options of the machine today
LONGEST_NAME = 200  # bytes of a model in a folder's name; file systems allow 255 for the whole


class RunConfig(RunFolder, RunSettings, RunIdentity):
    """One run, complete. ``resolve`` makes one from what a user gave; the constructor only checks ranges.

    Attributes:
        params: the algorithm's parameters, all of them; the options ``set`` and ``config`` give them.
        train_prompts: the user's own prompts to train on, read from the file of the option ``prompts``.
    """

    params: dict[str, Any] = Field(default_factory=dict)
    train_prompts: tuple[str, ...] = option("Prompts to train on in place of the suite's.", (), later=True)

    def folder(self, out: Path) -> Path:
        """Where the run is recorded: ``out/suite[-model]/proxy/algo[+mitigation]/seedN[-tag]``."""
        suite = self.suite + (f"-{_file_name(self.model)}" if self.model else "")
        run = f"seed{self.seed}" + (f"-{self.tag}" if self.tag else "")
        algo = _file_name("+".join([self.algo, *self.mitigation]), also="+=,")
        return out / suite / self.proxy.replace(":", "-") / algo / run

    def training_prompts(self, suite: Suite) -> tuple[str, ...]:
        """The user's own prompts, else those of the suite's split."""
        return self.train_prompts or suite.prompts[self.train_split]

    def config_hash(self) -> str:
        """SHA-256 of the canonical JSON, without ``MEMORY_PARAMS``.

        Fields that came after the first results count only where they are used, so those keep their hash.
        """
        fields = type(self).model_fields
        unused = {k for k, field in fields.items() if note(field, "later") and getattr(self, k) == field.get_default()}
        content = self.model_dump(mode="json", exclude=unused)
        content["params"] = {k: v for k, v in content["params"].items() if k not in MEMORY_PARAMS}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _file_name(text: str, also: str = "") -> str:
    """Return a folder's name for a text: its words, and where they are too long their end and a hash of all.

    Args:
        text: a model's name or path, or an algorithm with its mitigations.
        also: signs that stay what they are.
    """
    name = re.sub(rf"[^\w.{also}]+", "-", text).strip("-")
    if len(os.fsencode(name)) <= LONGEST_NAME:
        return name
    end = os.fsencode(name)[-LONGEST_NAME // 2 :].decode(errors="ignore")
    return f"{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}-{end}"


def parse_set(pairs: Iterable[str]) -> dict[str, Any]:
    """``["lr=1e-4", "clip=true"]`` to values: JSON where it parses, else the text itself.

    Raises:
        UserError: where a pair has no ``=`` or a name comes twice.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {pair!r}: write name=value, for example --set lr=1e-4")
        if name.strip() in values:
            raise UserError(f"--set {name.strip()} is given twice")
        values[name.strip()] = read_value(text)
    return values


def resolve_params(algo: str, suite: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve an algorithm's parameters: the paper's defaults, then the suite's settings, then the user's.

    Raises:
        UserError: for an unknown name, a wrong type or a value out of range.
    """
    params = algorithms.get(algo).Params
    for name in given.keys() & MEMORY_PARAMS - params.model_fields.keys():
        raise UserError(
            f"{name} is no parameter of {algo}: it changes memory and speed but no result; use the option"
            f" --{name.replace('_', '-')}"
        )
    values = {**suites.get(suite).settings(algo), **given}
    for name, value in values.items():
        field = params.model_fields.get(name)
        if value == "none" and field is not None and type(None) in get_args(field.annotation):
            values[name] = None
    try:
        return params(**values).model_dump(mode="json")
    except ValidationError as error:
        raise explain(error, algo, params.model_fields) from None


def resolve_mitigations(algo: type[Algorithm], given: Iterable[str]) -> tuple[str, ...]:
    """Check each mitigation and return the texts that stand for them, all parameters written out.

    Raises:
        UserError: for an unknown name, a wrong or missing parameter, one that is given twice, or one that the algorithm
            cannot be run with.
    """
    from overopt_bench.types.mitigation import parse_mitigation, write_mitigation

    chosen: dict[str, str] = {}
    for text in given:
        name, values = parse_mitigation(text)
        cls = mitigations.get(name)
        try:
            params = cls.Params(**values)
        except ValidationError as error:
            raise explain(error, f"--mitigation {name}", cls.Params.model_fields) from None
        cls.check(algo, params)
        if name in chosen:
            raise UserError(f"--mitigation {name} is given twice: {chosen[name]} and {text}")
        chosen[name] = write_mitigation(name, params)
    return tuple(chosen.values())


def resolve(given: Mapping[str, Any]) -> RunConfig:
    """What a user gave (names of ``RunConfig``; None means not given) to a complete, checked configuration.

    Raises:
        UserError: one line for whatever is wrong.
    """
    values = _checked_shapes({k: v for k, v in given.items() if v is not None})
    suite, algo = suites.get(values["suite"]), algorithms.get(values["algo"])
    family = suite.family()
    proxy = rewards.canonical(values["proxy"], family)
    gold = tuple(dict.fromkeys(rewards.canonical(name, family) for name in (*values.get("gold", ()), suite.gold)))
    check_split(suite, values.get("train_split", "train"))
    get_suite(suite.name, model=values.get("model"))
    defaults = {k: v for k, v in vars(suite.defaults).items() if k not in values}
    params = resolve_params(algo.name, suite.name, values.get("params", {}))
    chosen = resolve_mitigations(algo, values["mitigation"])
    try:
        config = RunConfig(
            **{**defaults, **values, "proxy": proxy, "gold": gold, "params": params, "mitigation": chosen}
        )
    except ValidationError as error:
        raise explain(error, "", RunConfig.model_fields) from None
    if algo.needs_gradient:  # the only question here that needs a reward's class, and with it torch
        _check_gradient(algo.name, proxy, suite)
    return config


def _check_gradient(algo: str, proxy: str, suite: type[Suite]) -> None:
    family = suite.family()
    if rewards.get(proxy, family).differentiable:
        return
    allowed = [name for name in rewards.names(family) if rewards.get(name, family).differentiable]
    raise UserError(
        f"{algo} needs a differentiable proxy and {proxy!r} is not; differentiable in {suite.name}:"
        f" {', '.join(allowed) or 'none'}"
    )


def _checked_shapes(values: dict[str, Any]) -> dict[str, Any]:
    """The parts that must be right before names can be looked up."""
    for name in values.keys() - RunConfig.model_fields.keys():
        raise unknown_name("option", name, RunConfig.model_fields)
    for name in ("algo", "proxy", "suite"):
        if not isinstance(values.get(name, ""), str):
            raise UserError(f"--{name} must be a name, not {values[name]!r}")
        if not values.get(name):
            raise UserError(f"--{name} is required; `overopt-bench list` shows what there is")
    gold = values.get("gold", ())
    gold = (gold,) if isinstance(gold, str) else gold
    if not isinstance(gold, list | tuple) or not all(isinstance(name, str) for name in gold):
        raise UserError(f"--gold must be names of rewards, not {gold!r}")
    chosen = values.get("mitigation", ())
    chosen = (chosen,) if isinstance(chosen, str) else chosen
    if not isinstance(chosen, list | tuple) or not all(isinstance(text, str) for text in chosen):
        raise UserError(f"--mitigation must be texts such as kl:beta=0.01, not {chosen!r}")
    if not isinstance(values.get("params", {}), Mapping):
        raise UserError(f"params must be a mapping such as {{lr: 1.0e-4}}, not {values['params']!r}")
    if values.get("budget_unit", "queries") != "queries" and "budget" not in values:
        raise UserError(f"--budget-unit {values['budget_unit']} needs --budget: the suite's default counts queries")
    if values.get("train_prompts"):
        values = {**values, "train_prompts": tidy(values["train_prompts"], "train_prompts")[0]}
    return {**values, "gold": gold, "mitigation": chosen}


def check_split(suite: type[Suite], split: str) -> None:
    """Refuse a split of the suite's prompts that does not exist or is held out.

    Raises:
        UserError: which names the nearest that may be trained on.
    """
    if split == "train":
        return
    allowed = [name for name in suite().prompts if not name.startswith("heldout")]
    if split not in allowed:
        raise unknown_name("prompt split to train on:", split, allowed)


def check_prompts(config: RunConfig, suite: Suite) -> None:
    """Refuse a run whose prompts one of its rewards cannot judge; loads no weights.

    Raises:
        UserError: where a training prompt or a held-out one is none for a reward that the run evaluates.
    """
    held_out = [p for split, texts in suite.prompts.items() if split.startswith("heldout") for p in texts]
    prompts = [*config.training_prompts(suite), *held_out]
    for name in evaluated_rewards(suite, config.proxy, config.gold):
        rewards.get(name, suite.family()).check_prompts(prompts, suite.resources)


def warnings(config: RunConfig) -> list[str]:
    """What is allowed but probably not meant, one line each."""
    lines = []
    by_itself = (
        len(config.gold) > 1 and config.proxy == suites.get(config.suite).gold
    )  # nobody asked, and others are there
    if config.proxy in config.gold and not by_itself:
        lines.append(f"the proxy {config.proxy!r} is also a gold reward: this run cannot show its overoptimization")
    suite = get_suite(config.suite, model=config.model)
    held_out = {split: prompts for split, prompts in suite.prompts.items() if split.startswith("heldout")}
    for split, prompts in held_out.items():
        if seen := overlap(config.training_prompts(suite), prompts):
            lines.append(
                f"{len(seen)} of the {len(prompts)} prompts of the split {split!r} are trained on, such as {seen[0]!r}:"
                " its scores are not of unseen prompts"
            )
    return lines


def read_config_file(path: Path) -> dict[str, Any]:
    """Read options from YAML, TOML, or the ``config.json`` of an earlier run: settings, ``Runtime``'s, and plugins.

    Raises:
        UserError: where it is missing, does not parse, or holds an option that does not exist.
    """
    text = read_text(path, "--config")
    try:
        content = _parse(path, text)
    except ValueError as error:
        raise UserError(f"--config {path}: {error}") from None
    if isinstance(content, dict) and content.keys() >= {"schema", "config"}:
        content = content["config"]
        if isinstance(content, dict) and isinstance(content.get("params"), dict):
            content["params"] = {k: v for k, v in content["params"].items() if k not in MEMORY_PARAMS}
    if not isinstance(content, dict):
        raise UserError(f"--config {path}: must be a mapping of options, such as `algo: ddpo`")
    allowed = {*RunConfig.model_fields, *Runtime.model_fields, "plugin"}
    for name in content:
        if name not in allowed:
            raise unknown_name(f"option in {path}:", str(name), allowed)
    return dict(content)


def _parse(path: Path, text: str) -> Any:
    """TOML by the file's ending, else JSON or YAML; ValueError where it does not parse."""
    if path.suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        return tomllib.loads(text)
    import yaml

    try:  # JSON is YAML but for characters beyond the basic plane, whose escapes YAML reads as two broken ones
        return json.loads(text)
    except ValueError as error:
        if path.suffix == ".json":
            raise ValueError(f"not JSON: {error}") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
