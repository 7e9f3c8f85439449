"""One display for a run: a live bar on a terminal, a plain line per evaluation elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from overopt_bench.config import RunConfig
from overopt_bench.training.budget import Budget

UNITS = {
    "queries": ("query", "queries"),
    "nfe": ("U-Net evaluation", "U-Net evaluations"),
    "seconds": ("second", "seconds"),
}  # one, several


def clock(seconds: float) -> str:
    """Write seconds as h:mm:ss or m:ss."""
    minutes, s = divmod(max(0, round(seconds)), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


class Progress:
    """A display of budget spent, the proxy in training, the golds and sqrt(KL) at evaluation, rate and time left.

    Args:
        config: the configuration of the run.
        budget: what is spent.
        quiet: whether to show nothing.
        spends: whether the method spends any of its budget; one that does not has no rate.
    """

    def __init__(self, config: RunConfig, budget: Budget, quiet: bool = False, spends: bool = True) -> None:
        self.config, self.budget, self.quiet, self.spends = config, budget, quiet, spends
        self._start, self._first = time.monotonic(), budget.spent
        self._seen: dict[str, float] = {}
        self._bar: Bar | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Progress:
        if sys.stdout.isatty() and not self.quiet:
            self._bar = Bar(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"), console=Console()
            )
            name = f"{self.config.algo} on {self.config.suite} {self.config.proxy}, seed {self.config.seed}"
            self._task = self._bar.add_task(name, total=self.config.budget, completed=int(self.budget.spent), text="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def trained(self, metrics: Mapping[str, float]) -> None:
        """Show a training round's metrics."""
        if "proxy/mean" in metrics:
            self._seen["proxy"] = metrics["proxy/mean"]
        if self._bar is not None:
            self._bar.update(self._task, completed=self.budget.spent, text=self._text())

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Show an evaluation's row; this is what a log file has."""
        self._seen = {"proxy": row[f"train/{self.config.proxy}/mean"]}
        self._seen |= {gold: row[f"train/{gold}/mean"] for gold in self.config.gold}
        shown = {"sqrt(KL)": "train/sqrt_kl", "sqrt(image KL)": "train/sqrt_image_kl"}  # of chains, of kept images
        self._seen |= {name: row[key] for name, key in shown.items() if key in row}
        if self.quiet:
            return
        if self._bar is None:
            print(self._text(), flush=True)
        else:
            self._bar.update(self._task, completed=self.budget.spent, text=self._text())

    def _text(self) -> str:
        scores = "  ".join(f"{k} {v:.3f}" for k, v in self._seen.items())
        if not self.spends:
            return f"no {UNITS[self.config.budget_unit][1]} spent  {scores}"
        done, total = self.budget.spent - self._first, self.config.budget
        parts = [f"{self.budget.spent:.0f}/{total} {UNITS[self.config.budget_unit][1]}", scores]
        if done > 0:
            seconds = (time.monotonic() - self._start) / done
            if self.config.budget_unit != "seconds":
                parts.append(f"{seconds:.3g} s a {UNITS[self.config.budget_unit][0]}")
            if self.budget.spent < total:
                parts.append(f"{clock(seconds * (total - self.budget.spent))} left")
        return "  ".join(parts)
