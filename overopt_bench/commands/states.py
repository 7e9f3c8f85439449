"""How far a sweep's runs are: a live table on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table

from overopt_bench.commands.grid import Cells
from overopt_bench.config import RunConfig
from overopt_bench.errors import DONE, INTERRUPTED
from overopt_bench.training.progress import clock

TAIL = 1 << 16  # bytes from the end of a record in which its last whole line is looked for
ORDER = ("complete", "running", "waiting", "interrupted", "failed")
ENDS = {DONE: "complete", INTERRUPTED: "interrupted"}  # by exit status; any other is a failure


def spent(config: RunConfig, folder: Path) -> float:
    """Return how much of its budget a run has spent, from 0 to 1, by the last line of its record."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().split(b"\n")[1:-1] or [b""]
        row = json.loads(next((line for line in reversed(lines) if line.startswith(b'{"event": "train"')), b""))
        return min(1.0, float(row[config.budget_unit]) / config.budget)
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


class Board:
    """The states of a sweep's runs.

    Args:
        cells: the runs.
        todo: which of them are worked off.
        jobs: how many at a time.
    """

    def __init__(self, cells: Cells, todo: Sequence[int], jobs: int) -> None:
        self.cells, self.todo, self.jobs = cells, todo, jobs
        self.states = dict.fromkeys(todo, "waiting")
        self._started: dict[int, tuple[float, float]] = {}  # when, and how much was spent before
        self._seconds: list[float] = []  # for a whole budget, of the runs that are complete
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if sys.stdout.isatty():
            self._live = Live(self.table(), console=Console(), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.update(self.table())
            self._live.stop()

    def began(self, index: int) -> None:
        """Note that a run is under way."""
        self.states[index] = "running"
        self._started[index] = (time.monotonic(), self._spent(index))
        self._line(index, "")

    def ended(self, index: int, status: int, problem: str) -> None:
        """Note that a run's process ended.

        Args:
            index: of the run.
            status: of the process's exit.
            problem: why the run failed; empty where it did not.
        """
        self.states[index] = ENDS.get(status, "failed")
        start, before = self._started[index]
        if status == DONE and before < 1:
            self._seconds.append((time.monotonic() - start) / (1 - before))
        self._line(index, problem or clock(time.monotonic() - start))

    def refresh(self) -> None:
        """Show where the runs are now."""
        if self._live is not None:
            self._live.update(self.table())

    def say(self, line: str) -> None:
        """Print a line, above the table where there is one."""
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def table(self) -> Table:
        """Return the runs that are under way, those that failed, and how many there are of each kind."""
        table = Table("run", "", "state", "spent", "left", title=self.summary(), title_justify="left")
        for index in [i for i in self.todo if self.states[i] not in ("waiting", "complete")]:
            running = self.states[index] == "running"
            left = self._left(index) if running else None
            name = str(self.cells.folder(index).relative_to(self.cells.out))
            share = f"{self._spent(index):.0%}"
            table.add_row(str(index), name, self.states[index], share, "" if left is None else clock(left))
        return table

    def summary(self) -> str:
        """Return how many runs are in each state, and about how long the rest takes."""
        states = list(self.states.values())
        counts = ", ".join(f"{states.count(state)} {state}" for state in ORDER if state in states)
        left = self.left()
        return counts + ("" if not left else f"; about {clock(left)} left")

    def left(self) -> float | None:
        """Estimate the seconds until all runs are complete; None where nothing is known yet."""
        running = [i for i in self.todo if self.states[i] == "running"]
        known = [left for i in running if (left := self._left(i)) is not None]
        whole = self._seconds or [
            (time.monotonic() - self._started[i][0] + left) / (1 - self._started[i][1])
            for i in running if (left := self._left(i)) is not None
        ]  # fmt: skip
        if not whole:
            return None
        mean = sum(whole) / len(whole)
        shares = [1 - self._spent(i) for i in self.todo if self.states[i] == "waiting"]
        rest = sum(known) + mean * (len(running) - len(known)) + mean * sum(shares)
        return max([rest / self.jobs, *known])

    def _spent(self, index: int) -> float:
        return spent(self.cells.configs[index], self.cells.folder(index))

    def _left(self, index: int) -> float | None:
        """Estimate the seconds until a running run is complete, by its own pace."""
        start, before = self._started[index]
        now = self._spent(index)
        return (time.monotonic() - start) / (now - before) * (1 - now) if now > before else None

    def _line(self, index: int, more: str) -> None:
        if self._live is None or self.states[index] not in ("running", "complete"):
            state = f"{index} {self.states[index]}: {self.cells.folder(index)}" + (f" ({more})" if more else "")
            self.say(f"{state}  [{self.summary()}]")
