"""The run folder and its only writer: atomic, resumable, locked."""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.config import RunConfig
from overopt_bench.errors import UserError
from overopt_bench.files import atomic
from overopt_bench.recording.identity import refuse_another_run
from overopt_bench.recording.locking import RunLock, is_lock
from overopt_bench.recording.sessions import SESSIONS

SCHEMA = 2  # of config.json; 1 held the first session's provenance, which is now a line of sessions.jsonl
KEEP = 2  # checkpoints: the newest, and one to fall back on


class Snapshot(NamedTuple):
    """A complete state of a run as a checkpoint file holds it; it shares no memory with the run.

    Attributes:
        queries: how many were spent.
        content: the bytes of the file.
    """

    queries: int
    content: bytes


class Recorder:
    """The only writer of one run: opening it creates or checks the folder and holds its lock until ``close``.

    Args:
        folder: the run folder, ``config.folder(out)``.
        config: the configuration of the run.
        provenance: where the numbers of this session come from; see ``add_session``.
        take_over: whether to take the place of a dead process that still holds the folder.

    Raises:
        UserError: where another process holds the folder, another configuration made it, or it is no run folder.
    """

    def __init__(
        self, folder: Path, config: RunConfig, provenance: Mapping[str, Any], take_over: bool = False
    ) -> None:  # fmt: skip
        self.folder = folder
        if (folder.exists() and not folder.is_dir()) or (
            folder.is_dir() and any(folder.iterdir()) and not self._ours(folder)
        ):
            raise UserError(f"{folder} exists and is not a run folder; use another --out or --tag")
        created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; use another --out") from None
        self._saving = threading.Lock()
        self._lock: RunLock | None = None
        try:
            self._lock = RunLock(folder, take_over)
            self._open(config, provenance)
        except BaseException:
            self.close()
            if created:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    @staticmethod
    def _ours(folder: Path) -> bool:
        return all(is_lock(p.name) for p in folder.iterdir()) or (folder / "config.json").exists()

    def _open(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        path = self.folder / "config.json"
        if path.exists():
            refuse_another_run(self.folder, config, provenance)
        else:
            content = {"schema": SCHEMA, "config": config.model_dump(mode="json"), "config_hash": config.config_hash()}
            self._write_json(path, content)
        with self._disk():
            for name in ("images", "checkpoint", "adapter"):
                (self.folder / name).mkdir(exist_ok=True)
            self._metrics = open(self.folder / "metrics.jsonl", "ab")

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        with self._disk(), atomic(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @contextmanager
    def _disk(self) -> Iterator[None]:
        if self._lock is not None:
            self._lock.check()
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write {self.folder}: {error.strerror}; the last checkpoint is kept, run the same command again to go on"
            ) from error

    def add_session(self, provenance: Mapping[str, Any], queries: int) -> None:
        """Append a line to ``sessions.jsonl``: who goes on with the run from here, on what, and with which versions.

        Args:
            provenance: what ``provenance`` gave for this session.
            queries: how many were spent before it.
        """
        with self._disk(), open(self.folder / SESSIONS, "ab+") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)  # what a kill left of a line
            file.write((json.dumps({**provenance, "queries": queries}) + "\n").encode())

    def write(self, event: str, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` and flush it.

        Args:
            event: what kind of line it is, such as "train" or "eval".
            row: its content, as JSON can hold it.
        """
        with self._disk():
            self._metrics.write((json.dumps({"event": event, **row}) + "\n").encode())
            self._metrics.flush()

    def image(self, queries: int, images: Tensor, columns: int) -> str:
        """Write images as one lossless grid, row by row.

        Args:
            queries: how many were spent; they name the file.
            images: ``[N, 3, H, W]`` in [0, 1].
            columns: how many images stand in a row of the grid.

        Returns:
            The file's path inside the run folder.
        """
        n, _, h, w = images.shape
        rows = -(-n // columns)
        cells = torch.zeros((rows * columns, 3, h, w))
        cells[:n] = images.cpu()
        grid = cells.reshape(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
        name = f"images/{queries:07d}.png"
        with self._disk(), atomic(self.folder / name) as temporary:
            Image.fromarray((grid * 255).round().to(torch.uint8).numpy()).save(temporary, format="PNG")
        return name

    def status(self, state: str, queries: int, reason: str | None = None) -> None:
        """Write what became of the run.

        Args:
            state: running, interrupted, complete or failed.
            queries: how many were spent.
            reason: why, in one line; None where nothing is to be said.
        """
        self._write_json(self.folder / "status.json", {"state": state, "queries": queries, "reason": reason})

    def complete(self) -> bool:
        """Say whether the run came to the end of its budget already."""
        try:
            return bool(json.loads((self.folder / "status.json").read_text(encoding="utf-8"))["state"] == "complete")
        except (OSError, ValueError, KeyError):
            return False

    def snapshot(self, queries: int, state: Mapping[str, Any]) -> Snapshot:
        """Take everything that the run needs to go on, and where ``metrics.jsonl`` ends, to be saved now or later.

        Args:
            queries: how many were spent.
            state: what ``resume`` is to give back; tensors, numbers and text in containers.
        """
        with self._disk():
            self._metrics.flush()
            buffer = io.BytesIO()
            torch.save({"metrics_bytes": self._metrics.tell(), **state}, buffer)
        return Snapshot(queries, buffer.getvalue())

    def save(self, snapshot: Snapshot) -> None:
        """Write a checkpoint and keep the newest two; may be called from any thread."""
        with self._saving, self._disk():
            os.fsync(self._metrics.fileno())
            folder = self.folder / "checkpoint"
            with atomic(folder / f"{snapshot.queries:09d}.pt") as temporary:
                temporary.write_bytes(snapshot.content)
            for old in sorted(folder.glob("*.pt"))[:-KEEP]:
                old.unlink()

    def adapter(self, save: Callable[[Path], None]) -> None:
        """Have ``save`` write the trained weights into the folder that it is given as its argument."""
        with self._disk():
            save(self.folder / "adapter")

    def rows(self) -> Iterator[dict[str, Any]]:
        """Read the lines of ``metrics.jsonl`` so far, oldest first."""
        with open(self.folder / "metrics.jsonl", "rb") as file:
            yield from (json.loads(line) for line in file)

    def resume(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest checkpoint that can be loaded, and drop the lines of ``metrics.jsonl`` past it.

        Returns:
            Its state, or None where the run begins, and a sentence for each newer one that is damaged.
        """
        complaints = []
        for path in sorted((self.folder / "checkpoint").glob("*.pt"), reverse=True):
            try:
                state = dict(torch.load(path, weights_only=True, map_location="cpu"))
                end = int(state.pop("metrics_bytes"))
                if end > (self.folder / "metrics.jsonl").stat().st_size:
                    raise ValueError("metrics.jsonl is shorter than the checkpoint says")
                if not all(bool(weight.isfinite().all()) for weight in state.get("policy", {}).values()):
                    raise ValueError("it holds weights that are not finite, which no run saves")
            except Exception as error:  # a damaged pickle can raise almost anything
                complaints.append(f"checkpoint {path.name} is damaged ({type(error).__name__}); trying the one before")
                path.unlink()
                continue
            self._metrics.truncate(end)
            self._metrics.seek(end)
            return state, complaints
        if complaints:
            complaints[-1] = complaints[-1].replace("trying the one before", "starting from the beginning")
        self._metrics.truncate(0)
        return None, complaints

    def close(self) -> None:
        """Close the record and let other processes have the folder."""
        if hasattr(self, "_metrics"):
            self._metrics.close()
        if self._lock is not None:
            self._lock.release()


class Bystander(Recorder):
    """The recorder of every process but the main one: it writes nothing and reads nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, event: str, row: Mapping[str, Any]) -> None:
        return None

    def image(self, queries: int, images: Tensor, columns: int) -> str:
        return ""

    def status(self, state: str, queries: int, reason: str | None = None) -> None:
        return None

    def snapshot(self, queries: int, state: Mapping[str, Any]) -> Snapshot:
        return Snapshot(queries, b"")

    def save(self, snapshot: Snapshot) -> None:
        return None

    def add_session(self, provenance: Mapping[str, Any], queries: int) -> None:
        return None

    def adapter(self, save: Callable[[Path], None]) -> None:
        return None

    def close(self) -> None:
        return None


def open_recorder(
    folder: Path, config: RunConfig, provenance: Mapping[str, Any], world: World, take_over: bool = False
) -> Recorder:  # fmt: skip
    """Open the run's one writer on the main process, and a ``Bystander`` on the others.

    Args:
        folder: the run folder, ``config.folder(out)``.
        config: the configuration of the run.
        provenance: where the numbers of this session come from.
        world: the processes of the run.
        take_over: whether to take the place of a dead process that still holds the folder.

    Raises:
        UserError: on all processes, as ``Recorder``.
    """
    opened: list[Recorder] = []
    world.on_main(lambda: opened.append(Recorder(folder, config, provenance, take_over)))
    return opened[0] if opened else Bystander(folder)
