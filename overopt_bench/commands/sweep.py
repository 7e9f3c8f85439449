"""A grid of runs, one after the other; what is complete is skipped, what is not is resumed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from overopt_bench.commands.command import Arguments
from overopt_bench.commands.requests import Grid, Recording
from overopt_bench.commands.run import announce, start
from overopt_bench.commands.settings import probe, read_options
from overopt_bench.config import RunConfig
from overopt_bench.errors import RunError, UserError


def parse_seeds(text: str) -> list[int]:
    """``"0-4"``, ``"0,2,7"`` or a mixture, to distinct seeds in the order given.

    Raises:
        UserError: where it is neither.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--seeds {text!r}: write 0-4 or 0,2,7")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def parse_names(option: str, text: str) -> list[str]:
    """``"a,b"`` to distinct names.

    Raises:
        UserError: where there is none.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UserError(f"{option} needs at least one name")
    return names


def is_complete(config: RunConfig, out: Path) -> bool:
    """Whether this very run is complete.

    Raises:
        UserError: where its folder holds a run of another configuration.
    """
    folder = config.folder(out)
    try:
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config_hash"]
        state = json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError):
        return False
    if recorded != config.config_hash():
        raise UserError(f"{folder} holds a run of another configuration; give --tag or another --out")
    return bool(state == "complete")


def run_grid(arguments: Arguments) -> list[Path]:
    """Run every algorithm on every proxy with every seed.

    Raises:
        UserError: before the first run, for whatever is wrong.
        RunError: at the end, where any failed; names each.
    """
    options, grid, recording = read_options(arguments), arguments.make(Grid), arguments.make(Recording)
    algos, proxies = parse_names("--algo", grid.algo), parse_names("--proxy", grid.proxy)
    configs = [
        options.config(algo, proxy, seed, among=algos)
        for proxy in proxies for algo in algos for seed in parse_seeds(grid.seeds)
    ]  # fmt: skip
    announce(options, configs)
    for one in {config.proxy: config for config in configs}.values():
        probe(one, options.runtime)
    return run_all(configs, recording.out, lambda one: start(one, options, recording))


def run_all(configs: Sequence[RunConfig], out: Path, start: Callable[[RunConfig], object]) -> list[Path]:
    """Run what is not complete; one failure does not stop the others, unless several processes share the runs.

    Raises:
        UserError: before the first run, where a folder belongs to another configuration.
        RunError: at the end, where any failed; names each.
    """
    todo = [config for config in configs if not is_complete(config, out)]
    speaks, alone = os.environ.get("RANK", "0") == "0", os.environ.get("WORLD_SIZE", "1") == "1"
    if speaks:
        print(f"sweep: {len(configs)} runs, {len(configs) - len(todo)} complete already", flush=True)
    failed = []
    for number, config in enumerate(todo, 1):
        if speaks:
            print(f"[{number}/{len(todo)}] {config.folder(out)}", flush=True)
        try:
            start(config)
        except Exception as error:  # the others are independent of it
            if not alone:  # one of several processes may have failed alone, and the next run needs all of them
                raise
            failed.append(f"{config.folder(out)} ({type(error).__name__}: {error})")
            print(f"failed: {failed[-1]}", flush=True)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}; the same command tries them again"
        )
    return [config.folder(out) for config in configs]
