"""Optional live trackers. ``metrics.jsonl`` is the record, and a tracker's curve is drawn from it; nothing here is needed."""

from __future__ import annotations

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from overopt_bench.config import RunConfig
from overopt_bench.errors import UserError, unknown_name

CURVES = ("train", "eval")  # the events whose scalars are logged
PLACES = {"event", "queries", "nfe", "seconds", "round", "point"}  # where on the curve a row stands, not what is on it


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Pick the numbers of one row of the record that a curve shows."""
    return {k: float(v) for k, v in row.items() if k not in PLACES and isinstance(v, (int, float))}


class Tracker(ABC):
    """A live curve of one run, against the queries spent."""

    @abstractmethod
    def log(self, queries: int, values: Mapping[str, float]) -> None:
        """Draw scalars at this many queries."""

    @abstractmethod
    def close(self) -> None:
        """Write out what is still held back; call it on every way out."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Draw one row of the record, if it belongs to a curve."""
        if row["event"] in CURVES:
            self.log(row["queries"], scalars(row))


class NoTracker(Tracker):
    """A tracker that draws nothing, for runs without one and for all processes but the main one."""

    def log(self, queries: int, values: Mapping[str, float]) -> None:
        return None

    def close(self) -> None:
        return None


class TensorBoard(Tracker):
    """A tracker that writes TensorBoard's event files into ``tensorboard/`` of the run folder.

    What an earlier session left there is replaced: it may reach beyond the checkpoint from which the run goes on.
    """

    def __init__(self, config: RunConfig, folder: Path, started: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in (folder / "tensorboard").glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def log(self, queries: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, queries)

    def close(self) -> None:
        self._writer.close()


class WandB(Tracker):
    """A tracker that draws into one run of Weights & Biases, the same after each resume.

    What is logged there cannot be taken back, so what it holds already is not sent again.
    """

    def __init__(self, config: RunConfig, folder: Path, started: str) -> None:
        import wandb

        identity = hashlib.sha256(f"{config.config_hash()} {started}".encode()).hexdigest()[:16]
        self._run = wandb.init(
            project="overopt-bench", id=identity, resume="allow", dir=str(folder), config=config.model_dump(mode="json")
        )
        self._known = int(self._run.step)  # steps below this one are there

    def log(self, queries: int, values: Mapping[str, float]) -> None:
        if queries >= self._known:
            self._run.log(dict(values), step=queries)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, Callable[[RunConfig, Path, str], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def check_tracker(kind: str | None) -> None:
    """Make sure that a tracker can be used, before anything is written.

    Raises:
        UserError: for an unknown kind, or one whose package is not installed.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise unknown_name("--tracker", kind, KINDS)
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--tracker {kind}: the package is not installed; pip install {kind}")


def open_tracker(
    kind: str | None, config: RunConfig, folder: Path, started: str, rows: Iterable[Mapping[str, Any]]
) -> Tracker:
    """Open a tracker that shows what the record holds already, and goes on from there.

    Args:
        kind: one of ``KINDS``, or None for no tracker.
        config: the configuration of the run.
        folder: the run folder.
        started: when the run was started at first, which tells apart runs of one configuration.
        rows: the rows of the record so far.
    """
    if kind is None:
        return NoTracker()
    tracker = KINDS[kind](config, folder, started)
    for row in rows:
        tracker.record(row)
    return tracker
