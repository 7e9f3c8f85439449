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
from overopt_bench.recording.locking import HEARTBEAT, LOCK, RunLock
from overopt_bench.recording.sessions import SESSIONS, read_sessions

SCHEMA = 2  # of config.json; 1 held the first session's provenance, which is now a line of sessions.jsonl
KEEP = 2  # checkpoints: the newest, and one to fall back on


def _shortened(value: object) -> str:
    """A setting as a message shows it: a list of a hundred thousand prompts by its beginning."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class Snapshot(NamedTuple):
    """A complete state of a run as a checkpoint file holds it, with its queries; it shares no memory with the run."""

    queries: int
    content: bytes


class Recorder:
    """Writes one run. Opening it creates or checks the folder and holds its lock until ``close``.

    Args:
        folder: ``config.folder(out)``. config: of this run. provenance: of this session; see ``add_session``.
        take_over: take the place of a dead process that still holds the folder.

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
        return {p.name for p in folder.iterdir()} <= {LOCK, HEARTBEAT} or (folder / "config.json").exists()

    def _open(self, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        path = self.folder / "config.json"
        if path.exists():
            self._compare(path, config, provenance)
        else:
            content = {"schema": SCHEMA, "config": config.model_dump(mode="json"), "config_hash": config.config_hash()}
            self._write_json(path, content)
        with self._disk():
            for name in ("images", "checkpoint", "adapter"):
                (self.folder / name).mkdir(exist_ok=True)
            self._metrics = open(self.folder / "metrics.jsonl", "ab")

    def _compare(self, path: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            old = dict(found["config"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}); delete the folder or use another --tag") from None
        if found.get("config_hash") == config.config_hash():
            self._compare_weights(provenance)
            return
        new = config.model_dump(mode="json")
        flat_old, flat_new = ({**c, **{f"params.{k}": v for k, v in c["params"].items()}} for c in (old, new))
        changed = [
            f"{k}: {_shortened(flat_old.get(k))} there, {_shortened(flat_new.get(k))} asked"
            for k in sorted({*flat_old, *flat_new} - {"params"}) if flat_old.get(k) != flat_new.get(k)
        ]  # fmt: skip
        raise UserError(
            f"{self.folder} was made by another configuration ({'; '.join(changed)}); use another --tag or --out"
        )

    def _compare_weights(self, new: Mapping[str, Any]) -> None:
        """The same settings with other weights would be another experiment."""
        sessions = read_sessions(self.folder)
        for kind in ("weights", "rewards"):
            before = {name: value for session in sessions for name, value in session.get(kind, {}).items()}
            now = new.get(kind, {})
            # a part that is read from files of another name is other weights too
            parts = {name.rpartition("/")[0] for name in now if "/" in name}
            gone = {name for name in before.keys() - now.keys() if name.rpartition("/")[0] in parts}
            if other := [name for name in before if name in gone or (name in now and before[name] != now[name])]:
                raise UserError(
                    f"{self.folder} was made with other weights of {', '.join(other)}; use another --tag or --out"
                )

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
        """Append a line to ``sessions.jsonl``: who goes on with the run from here, on what, and with which versions."""
        with self._disk(), open(self.folder / SESSIONS, "ab+") as file:
            file.seek(0)
            text = file.read()
            file.truncate(text.rfind(b"\n") + 1)  # what a kill left of a line
            file.write((json.dumps({**provenance, "queries": queries}) + "\n").encode())

    def write(self, event: str, row: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` and flush it."""
        with self._disk():
            self._metrics.write((json.dumps({"event": event, **row}) + "\n").encode())
            self._metrics.flush()

    def image(self, queries: int, images: Tensor, columns: int) -> str:
        """Images ``[N, 3, H, W]`` in [0, 1] as one lossless grid, row by row; its path inside the folder."""
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
        """running | interrupted | complete | failed, with the reason."""
        self._write_json(self.folder / "status.json", {"state": state, "queries": queries, "reason": reason})

    def complete(self) -> bool:
        """Whether the run ended already."""
        try:
            return bool(json.loads((self.folder / "status.json").read_text(encoding="utf-8"))["state"] == "complete")
        except (OSError, ValueError, KeyError):
            return False

    def snapshot(self, queries: int, state: Mapping[str, Any]) -> Snapshot:
        """Everything that the run needs to go on, and where ``metrics.jsonl`` ends, to be saved now or later."""
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
        """Have ``save`` write the trained weights into the folder that it is given."""
        with self._disk():
            save(self.folder / "adapter")

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl`` so far."""
        with open(self.folder / "metrics.jsonl", "rb") as file:
            yield from (json.loads(line) for line in file)

    def resume(self) -> tuple[dict[str, Any] | None, list[str]]:
        """The newest checkpoint that loads, and what was wrong with newer ones. Drops metric lines past it."""
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
        """Release the folder."""
        if hasattr(self, "_metrics"):
            self._metrics.close()
        if self._lock is not None:
            self._lock.release()


class Bystander(Recorder):
    """What the other processes of a run hold in the writer's place: it writes nothing and reads nothing."""

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
    """The run's one writer on the main process, a ``Bystander`` on the others.

    Raises:
        UserError: on all processes, as ``Recorder``.
    """
    opened: list[Recorder] = []
    world.on_main(lambda: opened.append(Recorder(folder, config, provenance, take_over)))
    return opened[0] if opened else Bystander(folder)
