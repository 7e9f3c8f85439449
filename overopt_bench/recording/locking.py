"""One writer for a run folder: a file lock where the file system has them, and everywhere a claim that its holder renews."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

import filelock

from overopt_bench.errors import RunError, UserError
from overopt_bench.recording.claims import BEAT, PREFIX, STALE, Claim, claimed, claims, holder_of

WATCH = 25.0  # seconds in which a living holder renews its claim for sure; no two clocks need agree for that
LOCK = ".lock"
ADVICE = "use another --seed, --tag or --out"


class RunLock:
    """A run folder's lock, held by this process until ``release``.

    The file lock tells at once whether another process of this machine lives. A network file system may have none, may
    keep that of a dead host, or may not show one host's to another; there the claim decides, which a thread renews. A
    claim that is old and is not renewed while it is watched is taken over, with a line on stderr.

    Args:
        folder: an existing run folder.
        take_over: whether to take the place of a holder that has not been heard of for ``STALE`` seconds although the
            file lock is still held.

    Raises:
        UserError: where another process holds the folder, or the folder cannot be written.
    """

    def __init__(self, folder: Path, take_over: bool = False) -> None:
        self.folder = folder
        self._holder = uuid.uuid4().hex
        self._path = folder / f"{PREFIX}0"  # until there is a claim
        self._renewed = time.time()
        self._renewing = threading.Lock()
        self._ended = threading.Event()
        self._lost = ""
        self._lock: filelock.BaseFileLock | None = None
        try:
            self._lock = self._acquire(take_over)
            self._claim()
        except OSError as error:
            self.release()
            raise UserError(f"cannot write {folder}: {error.strerror}; use another --out") from None
        except UserError:
            self.release()
            raise
        threading.Thread(target=self._beat, daemon=True, name="claim").start()

    def _acquire(self, take_over: bool) -> filelock.BaseFileLock | None:
        """Take the file lock, or None where the file system has no locks."""
        lock = filelock.FileLock(self.folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            self._refuse_unless_dead(take_over)
            (self.folder / LOCK).unlink()  # a dead host's lock stays on the old file
            lock.acquire(timeout=0)
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and not _without_locks(error):
                raise
            return None
        return lock

    def _refuse_unless_dead(self, take_over: bool) -> None:
        """Refuse a folder whose file lock is held, unless its holder may be dead and the user says so."""
        other = holder_of(self.folder)
        if other is not None and not other.old:
            late = f"--take-over is for one that was not heard of for {STALE:.0f} s; " if take_over else ""
            raise self._held(other, f"{late}wait for it, or {ADVICE}")
        if not take_over:
            raise self._held(other, f"if it is dead, --take-over goes on in its place, else {ADVICE}")

    def _held(self, other: Claim | None, advice: str) -> UserError:
        who = f" ({other})" if other else ""
        return UserError(f"another process is working on {self.folder}{who}; {advice}")

    def _claim(self) -> None:
        """Make a claim above those of the dead, which then are removed.

        Raises:
            UserError: where a living process has one, or makes one at the same time.
        """
        dead, highest = {self._holder}, 0
        for number, _, claim in claims(self.folder):
            if self._alive(claim):
                raise self._held(claim, f"wait for it, or {ADVICE}")
            dead.add(claim.holder)
            highest = max(highest, number)
        path = self.folder / f"{PREFIX}{highest + 1}"
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            raise self._held(Claim.read(path), f"it was a moment faster; wait for it, or {ADVICE}") from None
        self._path = path
        with os.fdopen(file, "wb") as opened:
            opened.write(Claim.own(self._holder).content())
            opened.flush()
            os.fsync(opened.fileno())
        for _, other, claim in claims(self.folder):
            if claim.holder not in dead:  # both saw the same dead one; both give way rather than both write
                raise self._held(claim, f"it began at the same time; wait for it, or {ADVICE}")
            if other != path:
                other.unlink(missing_ok=True)

    def _alive(self, claim: Claim) -> bool:
        """Say whether a claim's holder must be taken to be alive, after a while where that cannot be known at once."""
        if claim.here:  # the system knows; who holds a lock that is free has ended
            return self._lock is None and not claim.ended
        if not claim.old:
            return True
        self._say(f"the claim of another process ({claim}) is old; seeing for {WATCH:.0f} s whether it is renewed")
        time.sleep(WATCH)
        newest = holder_of(self.folder)
        if newest is not None and newest != claim:
            return True
        self._say("it is not; this process takes the folder over")
        return False

    def _say(self, line: str) -> None:
        print(f"warning: {self.folder}: {line}", file=sys.stderr, flush=True)

    def check(self) -> None:
        """Make sure that the folder is still this process's own.

        Raises:
            RunError: where another process took it over, because it did not hear of this one for too long.
        """
        if time.time() - self._renewed > 2 * BEAT:  # the process was suspended, or the disk did not answer
            with suppress(OSError):
                self._renew()
        if self._lost:
            raise RunError(f"{self.folder} {self._lost}; this process stops")

    def _beat(self) -> None:
        while not self._ended.wait(BEAT) and not self._lost:
            with suppress(OSError):  # whoever writes the record reports what is wrong with the disk
                self._renew()

    def _renew(self) -> None:
        """Renew the claim in its own file, where it still is the one that holds."""
        with self._renewing:
            newest = holder_of(self.folder)
            if newest is None or newest.holder != self._holder:
                by = "its claim was removed" if newest is None else f"was taken over by another process ({newest})"
                self._lost = self._lost or by
                return
            with open(self._path, "rb+") as file:
                file.write(Claim.own(self._holder).content())
                file.flush()
                os.fsync(file.fileno())
            self._renewed = time.time()

    def release(self) -> None:
        """Let others have the folder; a second call does nothing."""
        self._ended.set()
        with self._renewing, suppress(OSError):
            own = Claim.read(self._path)
            if own is not None and own.holder == self._holder:
                self._path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.release()


def await_claim(folder: Path) -> None:
    """Wait for a claim to end or to grow old, as long as that may take after a sudden death; no longer.

    A scheduler starts a run again on another machine while the claim of the first is still young.
    """
    deadline, said = time.time() + STALE + 2 * BEAT, False
    while claimed(folder) and time.time() < deadline:
        if not said:
            print(f"{folder} is claimed ({holder_of(folder)}); waiting up to {STALE + 2 * BEAT:.0f} s", flush=True)
        said = True
        time.sleep(BEAT / 10)


def is_lock(name: str) -> bool:
    """Say whether a file of a run folder belongs to its lock."""
    return name == LOCK or name.startswith(PREFIX)


def _without_locks(error: OSError) -> bool:
    """Say whether a file system has no locks at all, rather than that this file cannot be locked."""
    return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
