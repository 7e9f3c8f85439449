"""A report's work shared out among the cores: runs to read, figures to draw, each by itself."""

from __future__ import annotations

import multiprocessing
import platform
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from overopt_bench.compute.cores import cores
from overopt_bench.errors import RunError
from overopt_bench.report.progress import track

T = TypeVar("T")
R = TypeVar("R")
H = TypeVar("H")

_inherited: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # in a worker: what it does, and to what


def each(do: Callable[[T], R], things: Sequence[T], description: str, least: int = 1) -> list[R]:
    """Do something to each thing, on as many cores as there are; see ``beside``."""
    results, _ = beside(lambda: None, do, things, description, least)
    return results


def beside(
    here: Callable[[], H], do: Callable[[T], R], things: Sequence[T], description: str, least: int = 1
) -> tuple[list[R], H]:
    """Do something to each thing, on as many cores as there are, and something else in this process meanwhile.

    The workers are forks, so only numbers of things and results pass between processes. Elsewhere than on Linux, where
    a process may not be safe to fork, and where there is little to do, it is done here.

    Args:
        here: what to do in this process, which has the memory that workers lose: its result can be anything.
        do: what to do; its result must be picklable.
        things: what it is done to.
        description: of the bar on a terminal.
        least: things below which a worker is not worth its start.

    Returns:
        The results, in the order of the things, and what ``here`` gave.

    Raises:
        RunError: where a worker was killed. Any error of ``do`` comes through as it is.
    """
    workers = min(cores(), len(things) // least) if platform.system() == "Linux" else 1
    if workers < 2:
        return list(track(map(do, things), description, len(things))), here()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(do, things)) as pool:
        # All are forked at the first, before the bar has a thread.
        results = [pool.submit(_one, k) for k in range(len(things))]
        try:
            found = here()
            return [result.result() for result in track(results, description, len(things))], found
        except BrokenProcessPool:
            raise RunError(
                f"a process was killed while it worked on {description}, mostly for want of memory; free some, or report"
                " on fewer runs"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(do: Callable[[Any], Any], things: Sequence[Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits, which ends this one
    _inherited[:] = [(do, things)]


def _one(k: int) -> Any:
    ((do, things),) = _inherited
    return do(things[k])
