"""A grid of runs: what is complete is skipped, what is not is resumed; here, one by its index, or on a cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from overopt_bench.commands.command import Arguments
from overopt_bench.commands.grid import Cells, read_grid
from overopt_bench.commands.requests import Grid, Recording, Sources, Working
from overopt_bench.commands.run import announce
from overopt_bench.commands.settings import Options, parse_names, probe, read_options
from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import RunError, UserError
from overopt_bench.options import RunFolder, RunSettings, command_line_name, words
from overopt_bench.recording.locking import await_claim
from overopt_bench.shell import command_line

INDICES = ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX")  # by which a scheduler tells a job its run


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


def run_grid(arguments: Arguments) -> list[Path]:
    """Run every algorithm on every proxy with every seed, or do with them what else was asked.

    Raises:
        UserError: before the first run, for whatever is wrong.
        RunError: at the end, where any failed; names each.
        Stopped: after a signal, when what was under way is saved.
    """
    asked = arguments.make(Working)
    if asked.dry_run and asked.executor == "local":
        raise UserError("--dry-run prints the script of --executor slurm; for the runs of a sweep use --list")
    cells, options = _frozen(arguments, asked.grid) if asked.grid else _made(arguments)
    if asked.write is not None:
        cells.write(asked.write)
        print(
            f"{len(cells.configs)} runs in {asked.write}; `overopt-bench sweep --grid {asked.write} --list` shows them"
        )
    elif asked.list:
        print(*_listed(cells, arguments), sep="\n")
    elif asked.emit is not None:
        from overopt_bench.commands.kubernetes import manifest

        print(manifest(cells, asked.resource, asked.jobs), end="")
    elif asked.executor == "slurm":
        from overopt_bench.commands.slurm import submit

        submit(cells, asked.grid, asked.resource, asked.jobs, asked.dry_run)
    elif (index := _index(asked.index)) is not None:
        cells.check(index)
        print(f"run {index} of {len(cells.configs)}: {cells.folder(index)}", flush=True)
        await_claim(cells.folder(index))
        cells.start(index)
    else:
        todo = cells.todo()
        if options is not None:
            announce(options, cells.configs)
        run_all(cells, todo, asked.jobs, command_line(["overopt-bench", "sweep", *_words(arguments)]))
    return [cells.folder(index) for index in range(len(cells.configs))]


def _made(arguments: Arguments) -> tuple[Cells, Options]:
    """Return the runs that a user's options multiply."""
    for name in ("algo", "proxy"):
        if name not in arguments.given:
            raise UserError(f"{command_line_name(name)} is required, or --grid FILE, a file that --write made")
    grid, recording = arguments.make(Grid), arguments.make(Recording)
    options = read_options(arguments, elsewhere=any(name in arguments.given for name in ("write", "executor", "emit")))
    algos, proxies = parse_names("--algo", grid.algo), parse_names("--proxy", grid.proxy)
    configs = tuple(
        options.config(algo, proxy, seed, among=algos)
        for proxy in proxies for algo in algos for seed in parse_seeds(grid.seeds)
    )  # fmt: skip
    for one in {config.proxy: config for config in configs}.values():
        probe(one, options.runtime)
    return Cells.of(configs, options, recording), options


def _frozen(arguments: Arguments, path: Path) -> tuple[Cells, None]:
    """Return the runs of a file, whose settings are fixed."""
    if fixed := sorted(arguments.of(Grid, Sources, RunSettings, RunFolder)):
        raise UserError(f"--grid {path} fixes the settings of its runs: leave {command_line_name(fixed[0])} out")
    return read_grid(path, arguments.of(Recording), arguments.of(Runtime)), None


def _index(given: int | None) -> int | None:
    """Return the index of the one run that is asked for, by the user or by a scheduler; None where all are."""
    if given is not None:
        return given
    for name in INDICES:
        if name in os.environ:
            if not os.environ[name].isdigit():
                raise UserError(f"{name}={os.environ[name]} is no index; unset it, or give --index")
            return int(os.environ[name])
    return None


def _words(arguments: Arguments) -> list[str]:
    """Return the options that say which runs a sweep has, as they were given."""
    without = {*Working.model_fields} - {"grid", "jobs"}
    return [word for name, value in arguments.given.items() if name not in without for word in words(name, value)]


def _listed(cells: Cells, arguments: Arguments) -> list[str]:
    """Return a line for each run: its index, its state and the command that runs it."""
    start = command_line(["overopt-bench", "sweep", *_words(arguments)])
    width = len(str(len(cells.configs) - 1))
    return [f"{i:>{width}}  {cells.state(i):<11}  {start} --index {i}" for i in range(len(cells.configs))]


def run_all(cells: Cells, todo: Sequence[int], jobs: int | None, command: str) -> None:
    """Run what is not complete; one failure does not stop the others, unless several processes share the runs.

    Args:
        cells: the runs.
        todo: which of them are not complete.
        jobs: how many side by side; None for as many as the machine takes.
        command: the command that goes on with the sweep.

    Raises:
        RunError: at the end, where any failed; names each.
        Stopped: after a signal, when what was under way is saved.
    """
    from overopt_bench.commands.workers import default_jobs, run_side_by_side
    from overopt_bench.errors import Stopped
    from overopt_bench.training.stopping import print_last

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if os.environ.get("RANK", "0") == "0":
        print(f"sweep: {len(cells.configs)} runs, {len(cells.configs) - len(todo)} complete already", flush=True)
    if not todo:
        return
    jobs = (jobs or default_jobs(cells.runtimes[0].device)) if alone else 1
    if jobs == 1:  # by what was asked rather than by what is left, for the number of threads changes last bits
        run_in_turn(cells, todo, alone)
        return
    try:
        run_side_by_side(cells, todo, jobs)
    except Stopped:
        print_last(f"interrupted and saved; go on with:\n  {command}")
        raise


def run_in_turn(cells: Cells, todo: Sequence[int], alone: bool) -> None:
    """Run one after the other in this process.

    Args:
        cells: the runs.
        todo: which of them.
        alone: whether this process is the only one of the runs.

    Raises:
        RunError: at the end, where any failed; names each.
    """
    speaks, failed = os.environ.get("RANK", "0") == "0", list[str]()
    for number, index in enumerate(todo, 1):
        folder = cells.folder(index)
        if speaks:
            print(f"[{number}/{len(todo)}] {folder}", flush=True)
        try:
            cells.start(index)
        except Exception as error:  # the others are independent of it
            if not alone:  # one of several processes may have failed alone, and the next run needs all of them
                raise
            failed.append(f"{folder} ({type(error).__name__}: {error})")
            print(f"failed: {failed[-1]}", flush=True)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(todo)} runs failed: {'; '.join(failed)}; the same command tries them again"
        )
