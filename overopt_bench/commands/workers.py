"""Runs of a sweep side by side, each a process with one thread that has nothing in common with the others."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, ModuleType

from overopt_bench.commands.grid import Cells
from overopt_bench.commands.states import Board
from overopt_bench.compute.cores import cores
from overopt_bench.errors import BAD_INPUT, DONE, FAILED, INTERRUPTED, RunError, Stopped, UserError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
HEAVY = [  # what every run imports, however late
    "overopt_bench.training.loop", "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion", "torchvision.transforms.v2",
]  # fmt: skip
LOGS = ".sweep"  # folder within that of the results
LOOK = 0.5  # seconds between two looks at the runs
PATIENCE = 15.0  # seconds until a run that was asked to stop is asked again: one that had just begun did not hear it
SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@dataclass
class Worker:
    """A process that works on one run.

    Attributes:
        index: of the run.
        process: the process.
        log: what it prints.
        slot: which of the places for runs side by side it has, from 0.
    """

    index: int
    process: BaseProcess
    log: Path
    slot: int

    def problem(self) -> str:
        """Say in a line why the process ended without finishing its run."""
        code = self.process.exitcode or 0
        if code < 0:
            return f"killed by {signal.Signals(-code).name}; {self.log}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""]
        return f"{lines[-1].removeprefix('error: ')}; {self.log}"


def cards(device: str) -> list[str]:
    """List the devices among which runs are shared out: every CUDA card where ``cuda`` is asked, else the one."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{k}" for k in range(torch.cuda.device_count())]


def default_jobs(device: str) -> int:
    """Return how many runs go on side by side: one a core, or one a card."""
    return cores() if device == "cpu" else len(cards(device))


def run_side_by_side(cells: Cells, todo: Sequence[int], jobs: int) -> None:
    """Work off runs in processes of their own; a run that fails leaves the others running.

    Args:
        cells: the runs of the sweep.
        todo: which of them to work off, in order.
        jobs: how many at a time.

    Raises:
        RunError: at the end, where any failed; names each.
        Stopped: after a signal, when all have saved their states.
    """
    logs = cells.out / LOGS
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {logs}: {error.strerror}; use another --out") from None
    devices = cards(cells.runtimes[todo[0]].device)
    waiting, running, problems = list(todo), dict[int, Worker](), dict[int, str]()
    told = -PATIENCE
    with _one_thread(), _listening() as heard, Board(cells, todo, jobs) as board:
        context = _context()
        while waiting or running:
            for slot in range(jobs if not heard else 0):
                if slot not in running and waiting:
                    worker = _begin(context, cells, waiting.pop(0), slot, devices[slot % len(devices)], logs)
                    running[slot] = worker
                    board.began(worker.index)
            if heard and time.monotonic() > told + PATIENCE:
                waiting.clear()
                board.say("stopping: every run saves its state, which takes up to ten seconds ...")
                told = time.monotonic()
                for worker in running.values():
                    worker.process.terminate()
            wait([worker.process.sentinel for worker in running.values()], LOOK)
            for worker in [w for w in running.values() if not w.process.is_alive()]:
                del running[worker.slot]
                if worker.process.exitcode not in (DONE, INTERRUPTED):
                    problems[worker.index] = worker.problem()
                board.ended(worker.index, worker.process.exitcode or DONE, problems.get(worker.index, ""))
            board.refresh()
    if problems:
        named = "; ".join(f"{cells.folder(index)} ({problem})" for index, problem in problems.items())
        message = f"{len(problems)} of {len(todo)} runs failed: {named}; the same command tries them again"
        if not heard:
            raise RunError(message)
        print(f"error: {message}", file=sys.stderr, flush=True)
    if heard:
        raise Stopped(heard[0])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let processes that are started inside use one thread: threads that wait for each other's cores make all slower."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Give a list that gets the number of each signal that asks to stop; under nohup a hangup stays ignored."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    before = {s: signal.signal(s, hear) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _context() -> ForkServerContext | SpawnContext:
    """Return a way to start processes that import the heavy modules once, where the system has it."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    with _ignoring(signal.SIGTERM, signal.SIGHUP):  # which reach a whole group; it must tell how its children ended
        forkserver.ensure_running()
    return context


@contextmanager
def _ignoring(*numbers: signal.Signals) -> Iterator[None]:
    """Ignore signals inside the block, and in the processes that begin there for good."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hide the script that runs, which a new process would import, and which may start this very sweep at its top."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin(
    context: ForkServerContext | SpawnContext, cells: Cells, index: int, slot: int, device: str, logs: Path
) -> Worker:
    """Start the process of one run on a device."""
    config = cells.configs[index]
    log = logs / "-".join([*cells.folder(index).relative_to(cells.out).parts, config.config_hash()[:8] + ".log"])
    runtimes = tuple(runtime.model_copy(update={"device": device}) for runtime in cells.runtimes)
    process = context.Process(target=_work, args=(replace(cells, runtimes=runtimes), index, log), name=f"run {index}")
    with _no_main_module():
        process.start()
    return Worker(index, process, log, slot)


def _work(cells: Cells, index: int, log: Path) -> None:
    """Work on one run in a process of its own, and end it with the exit status that belongs to its end."""
    if hasattr(os, "setsid"):
        os.setsid()  # a terminal's Ctrl-C reaches the sweep, which tells its runs
    with open(log, "ab") as file, open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.exit(status_of(lambda: cells.start(index)))


def status_of(start: Callable[[], object]) -> int:
    """Run something that stops by SIGTERM also before a run listens, and return the exit status of its end."""
    threading.Thread(target=_end_with_parent, daemon=True, name="parent").start()
    signal.signal(signal.SIGTERM, _stop)
    try:
        start()
    except Stopped:
        return INTERRUPTED
    except (UserError, RunError) as error:
        print("error:", error, flush=True)
        return BAD_INPUT if isinstance(error, UserError) else FAILED
    except Exception as error:  # for the log; the sweep's user sees its last line
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {error}", flush=True)
        return FAILED
    return DONE


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _end_with_parent() -> None:
    """Stop this process's run when the sweep that started it is gone, as by a kill."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)
