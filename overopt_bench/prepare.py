"""From a user's options to a checked run: plugins, suite, device, configuration. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt_bench.config import RunConfig, read_config_file, resolve
from overopt_bench.errors import UserError
from overopt_bench.plugins import Plugin, load_plugins, probe_foreign_rewards
from overopt_bench.registry import get_suite, suites


def choose_suite(name: str | None) -> tuple[str, str]:
    """The suite to use and why.

    Raises:
        UserError: where the suite asked for does not exist or cannot run here.
    """
    if name is not None:
        missing = get_suite(name).missing()
        if missing is not None:
            raise UserError(missing)
        return name, "as asked"
    if "sd14" not in suites.names():
        return "mini", "the default"
    missing = get_suite("sd14").missing()
    return ("sd14", "it can run here") if missing is None else ("mini", missing.removesuffix("; use --suite mini"))


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
    """A user's options before they are checked: the command line over the file."""

    given: dict[str, Any]
    plugins: tuple[Plugin, ...]
    device: str
    suite_reason: str

    def config(self, algo: str | None, proxy: str | None, seed: int | None, params: Mapping[str, Any]) -> RunConfig:
        """The checked configuration of one run.

        Raises:
            UserError: for whatever is wrong.
        """
        own = {"algo": algo, "proxy": proxy, "seed": seed}
        merged = {**self.given, **{k: v for k, v in own.items() if v is not None}}
        base = merged.get("params") or {}
        if not isinstance(base, Mapping):
            raise UserError(f"params must be a mapping such as {{lr: 1.0e-4}}, not {base!r}")
        return resolve({**merged, "params": {**base, **params}})


def read_options(
    given: Mapping[str, Any], plugin: Iterable[str] | None, config: Path | None, device: str | None
) -> Options:
    """Load plugins and the file, choose suite and device.

    Raises:
        UserError: for whatever is wrong with them.
    """
    file = {} if config is None else read_config_file(Path(config))
    from_file = file.pop("plugin", None) or []
    files = [from_file] if isinstance(from_file, str) else list(from_file)
    plugins = load_plugins([*files, *(plugin or [])])
    values = {**file, **{k: v for k, v in given.items() if v not in (None, [], ())}}
    suite, reason = choose_suite(values.get("suite"))
    return Options({**values, "suite": suite}, plugins, choose_device(device), reason)


def probe(config: RunConfig) -> None:
    """Try the rewards that come from outside this package before anything is written."""
    probe_foreign_rewards([config.proxy, *config.gold], get_suite(config.suite))
