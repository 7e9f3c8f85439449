"""One writer for a run folder: a file lock, and a heartbeat that says whose it is and whether its holder lives."""

from __future__ import annotations

import errno
import json
import os
import platform
import threading
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import filelock
import psutil

from overopt_bench.errors import RunError, UserError

BEAT = 10.0  # seconds between two heartbeats
STALE = 60.0  # seconds after which a holder counts as dead: network file systems may show a file that late
LOCK, HEARTBEAT = ".lock", ".heartbeat"


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life of the process that works on a folder.

    Attributes:
        host: the name of its machine.
        pid: the process there.
        holder: a text that no other holder of a lock has.
        time: when it was written, in seconds of Unix time.
    """

    host: str
    pid: int
    holder: str
    time: float

    @classmethod
    def read(cls, path: Path) -> Heartbeat | None:
        """Read the last one of a folder, or None where there is none that can be read."""
        try:
            return cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def age(self) -> float:
        """Seconds since it was written; 0 where the other host's clock is ahead."""
        return max(0.0, time.time() - self.time)

    @property
    def fresh(self) -> bool:
        """Whether its writer must be taken to be alive."""
        return self.age < STALE and not (self.host == platform.node() and not psutil.pid_exists(self.pid))

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, last heard of {self.age:.0f} s ago"


class RunLock:
    """A run folder's lock, held by this process until ``release``.

    The file lock is enough on one machine. A network file system may have no locks, may keep the lock of a dead host,
    or may not show one host's lock to another; there the heartbeat decides, which a thread renews every ``BEAT`` seconds.

    Args:
        folder: an existing run folder.
        take_over: whether to take the place of a holder that has not been heard of for ``STALE`` seconds.

    Raises:
        UserError: where another process holds the folder, or the folder cannot be written.
    """

    def __init__(self, folder: Path, take_over: bool = False) -> None:
        self.folder = folder
        self._path = folder / HEARTBEAT
        self._holder = uuid.uuid4().hex
        self._ended = threading.Event()
        self._lost: Heartbeat | None = None
        other = Heartbeat.read(self._path)
        self._lock: filelock.BaseFileLock | None = None
        try:
            self._lock = self._acquire(other, take_over)
            self._write()
        except OSError as error:
            self.release()
            raise UserError(f"cannot write {folder}: {error.strerror}; use another --out") from None
        threading.Thread(target=self._beat, daemon=True, name="heartbeat").start()

    def _acquire(self, other: Heartbeat | None, take_over: bool) -> filelock.BaseFileLock | None:
        """Take the file lock, or None where the file system has no locks."""
        lock = filelock.FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            self._refuse_unless_dead(other, take_over)
            (self.folder / LOCK).unlink()  # a dead host's lock stays on the old file
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and not _without_locks(error):
                raise
            if other is not None and not (other.host == platform.node() and not other.fresh):
                self._refuse_unless_dead(other, take_over)
            return None
        else:
            if other is not None and other.host != platform.node() and other.fresh:
                lock.release()
                self._refuse_unless_dead(other, take_over)
        return lock

    def _refuse_unless_dead(self, other: Heartbeat | None, take_over: bool) -> None:
        held = f"another process is working on {self.folder}" + (f" ({other})" if other else "")
        if other is not None and other.fresh:
            advice = "wait for it, or use another --seed, --tag or --out"
            if take_over:
                advice = f"--take-over is for one that was not heard of for {STALE:.0f} s; {advice}"
            raise UserError(f"{held}; {advice}")
        if not take_over:
            raise UserError(
                f"{held}; if it is dead, --take-over goes on in its place, else use another --seed, --tag or --out"
            )

    def check(self) -> None:
        """Make sure that the folder is still this process's own.

        Raises:
            RunError: where another process took it over, because it did not hear of this one for too long.
        """
        if self._lost is not None:
            raise RunError(f"{self.folder} was taken over by another process ({self._lost}); this one stops")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            newest = Heartbeat.read(self._path)
            if newest is not None and newest.holder != self._holder:
                self._lost = newest
                return
            try:
                self._write()
            except OSError:  # a full disk is reported by whoever writes the record
                continue

    def _write(self) -> None:
        beat = Heartbeat(platform.node(), os.getpid(), self._holder, time.time())
        temporary = self._path.with_name(f"{HEARTBEAT}.{self._holder}.tmp")
        try:
            temporary.write_text(json.dumps(asdict(beat)))
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others have the folder; a second call does nothing."""
        self._ended.set()
        newest = Heartbeat.read(self._path)
        if newest is not None and newest.holder == self._holder:
            self._path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def _without_locks(error: OSError) -> bool:
    """Say whether a file system has no locks at all, rather than that this file cannot be locked."""
    return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
