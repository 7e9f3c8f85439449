"""The runs of a sweep in a fixed order, and the file that freezes them, so that an index means the same run tomorrow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt_bench.commands.requests import Recording
from overopt_bench.commands.settings import Options, choose_device
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, resolve
from overopt_bench.errors import UserError
from overopt_bench.files import atomic
from overopt_bench.plugins import load_plugins
from overopt_bench.recording.claims import claimed
from overopt_bench.recording.identity import other_configuration
from overopt_bench.text import read_text

SCHEMA = 1  # of the file


@dataclass(frozen=True)
class Cells:
    """The runs of a sweep; an index counts them from 0.

    Attributes:
        configs: a checked configuration for each run.
        runtimes: how to compute each.
        plugins: the files that were given with ``--plugin``.
        out: the folder of all results.
        tracker: the kind of tracker, or None.
        take_over: whether to take the place of dead processes that still hold run folders.
    """

    configs: tuple[RunConfig, ...]
    runtimes: tuple[Runtime, ...]
    plugins: tuple[Path, ...]
    out: Path
    tracker: str | None
    take_over: bool

    @classmethod
    def of(cls, configs: tuple[RunConfig, ...], options: Options, recording: Recording) -> Cells:
        """Put together what ``start`` needs, from a user's options."""
        runtimes = tuple(options.runtime_for(config.algo) for config in configs)
        plugins = tuple(plugin.path for plugin in options.plugins)
        return cls(configs, runtimes, plugins, recording.out, recording.tracker, recording.take_over)

    def folder(self, index: int) -> Path:
        """Return where a run is recorded."""
        return self.configs[index].folder(self.out)

    def state(self, index: int) -> str:
        """Tell how far a run is: waiting, running, interrupted, failed, complete, or another configuration's folder."""
        folder = self.folder(index)
        try:
            recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config_hash"]
            state = str(json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"])
        except (OSError, ValueError, KeyError):
            return "waiting"
        if recorded != self.configs[index].config_hash():
            return "another configuration"
        return "interrupted" if state == "running" and not claimed(folder) else state

    def todo(self) -> list[int]:
        """List the runs that are not complete.

        Raises:
            UserError: where folders hold runs of other configurations, so that none of the runs should be started; it
                names all of them.
        """
        self._refuse_other_configurations()
        return [index for index in range(len(self.configs)) if self.state(index) != "complete"]

    def _refuse_other_configurations(self) -> None:
        folders: dict[str, list[str]] = {}  # by what differs, which mostly is one thing in all of them
        for index, config in enumerate(self.configs):
            if (difference := other_configuration(self.folder(index), config)) is not None:
                folders.setdefault(difference, []).append(str(self.folder(index)))
        if folders:
            named = "; ".join(f"{', '.join(paths)} ({difference})" for difference, paths in folders.items())
            count = sum(map(len, folders.values()))
            raise UserError(
                f"nothing was started, for {count} of {len(self.configs)} runs have a folder that was made by another"
                f" configuration: {named}; use another --tag or --out"
            )

    def check(self, index: int) -> int:
        """Return an index that exists.

        Raises:
            UserError: where it does not.
        """
        if not 0 <= index < len(self.configs):
            raise UserError(
                f"there is no run {index}; allowed: 0 to {len(self.configs) - 1}, `sweep --list` shows them"
            )
        return index

    def start(self, index: int) -> Path:
        """Train or resume one run. Returns its folder.

        Raises:
            UserError: where the folder is another's, or a plugin or the device is not here.
            RunError: where the run cannot be finished.
        """
        from overopt_bench.training import loop as train

        runtime = self.runtimes[index]
        return train.run(
            self.configs[index], out=self.out, plugins=load_plugins(self.plugins), tracker=self.tracker,
            runtime=runtime.model_copy(update={"device": choose_device(runtime.device)}), take_over=self.take_over,
        )  # fmt: skip

    def text(self) -> str:
        """Return the content of the file that freezes the runs: what all have in common once, then what each has."""
        dumps = [
            {**config.model_dump(mode="json"), "hash": config.config_hash(), "runtime": _as_json(runtime)}
            for config, runtime in zip(self.configs, self.runtimes, strict=True)
        ]
        common = {k: v for k, v in dumps[0].items() if all(dump[k] == v for dump in dumps)}
        content = {
            "schema": SCHEMA, "out": str(self.out), "tracker": self.tracker, "plugins": [str(path) for path in self.plugins],
            "common": common,
        }  # fmt: skip
        lines = [json.dumps({k: v for k, v in dump.items() if k not in common}) for dump in dumps]
        return json.dumps(content)[:-1] + ', "cells": [\n' + ",\n".join(lines) + "\n]}\n"

    def write(self, path: Path) -> None:
        """Freeze the runs in a file.

        Raises:
            UserError: where it cannot be written, or holds other runs already.
        """
        text = self.text()
        try:
            if path.exists() and path.read_text(encoding="utf-8") != text:
                raise UserError(f"{path} holds another grid, by which runs may be under way; use another file")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; use another file") from None


def _as_json(runtime: Runtime) -> dict[str, Any]:
    """Return what was set of a runtime, so that what was left out is chosen by the machine that runs it."""
    return runtime.model_dump(mode="json", exclude_unset=True)


def read_grid(path: Path, recording: Mapping[str, Any], machine: Mapping[str, Any]) -> Cells:
    """Read the file that ``Cells.write`` made.

    Args:
        path: the file.
        recording: what the command line says of ``Recording``; it wins over the file.
        machine: what it says of ``Runtime``; it wins too.

    Raises:
        UserError: where it is no such file, or stands for other runs in this version than when it was written.
    """
    try:
        content = json.loads(read_text(path, "--grid"))
        plugins = load_plugins(content["plugins"])
        cells = [{**content["common"], **cell} for cell in content["cells"]]
        runtimes = tuple(Runtime(**{**cell.pop("runtime"), **machine}) for cell in cells)
        hashes = [cell.pop("hash") for cell in cells]
        if content["schema"] != SCHEMA or not cells:
            raise ValueError("schema or cells")
        where = {"out": Path(content["out"]), "tracker": content["tracker"], "take_over": False, **recording}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"--grid {path}: not a file that `sweep --write` made ({type(error).__name__}: {error})"
        ) from None
    configs = tuple(resolve(cell) for cell in cells)
    for index, (config, recorded) in enumerate(zip(configs, hashes, strict=True)):
        if config.config_hash() != recorded:
            raise UserError(f"--grid {path}: run {index} is another one in this version; write the grid anew")
    made = Recording(**where)
    return Cells(configs, runtimes, tuple(p.path for p in plugins), made.out, made.tracker, made.take_over)
