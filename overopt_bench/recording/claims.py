"""Files that claim a run folder for one process: made atomically, renewed while it lives, never overwritten by another.

A claim is ``.claim-N``. Whoever takes over from a dead holder makes ``.claim-N+1``, which only one can, and the highest N
holds. So nobody writes another's file, on any file system that makes a file only where there is none (``O_EXCL``: local
disks, NFS since version 3, Lustre, BeeGFS, GPFS).
"""

from __future__ import annotations

import functools
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

BEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds after which a holder may be dead: network file systems may show a file that late
PREFIX = ".claim-"
SIZE = 1024  # bytes, always as many, so that a renewal needs no room on a full disk


@functools.cache
def place() -> str:
    """Name where process ids mean the same: a machine since it was started, and there a container.

    A host's name is not enough: a pod of a Kubernetes job has the name of the one that it replaces.
    """
    facts = [platform.node()]
    with suppress(OSError):  # only Linux has them
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        facts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(facts)


@dataclass(frozen=True)
class Claim:
    """A sign of life of the process that works on a folder.

    Attributes:
        host: the name of its machine.
        place: where its id means something; see ``place``.
        pid: the process there.
        since: when that process began, in seconds of Unix time; ids are used again.
        holder: a text that no other holder has.
        time: when the claim was made or renewed, in seconds of Unix time by that machine's clock.
    """

    host: str
    place: str
    pid: int
    since: float
    holder: str
    time: float

    @classmethod
    def own(cls, holder: str) -> Claim:
        """Return this process's claim, made now."""
        pid = os.getpid()
        return cls(platform.node(), place(), pid, psutil.Process(pid).create_time(), holder, time.time())

    @classmethod
    def read(cls, path: Path) -> Claim | None:
        """Read a claim, or None where there is none; one that cannot be read is an unknown holder's."""
        try:
            with open(path, "rb") as file:  # opening asks a file server anew, which `stat` may not
                changed = os.fstat(file.fileno()).st_mtime
                return cls(**json.loads(file.read()))
        except OSError:
            return None
        except (ValueError, TypeError):  # made a moment ago, or cut off by a crash
            return cls("unknown", "", 0, 0.0, "", changed)

    def content(self) -> bytes:
        """Return what a claim's file holds."""
        return json.dumps(asdict(self)).encode().ljust(SIZE - 1) + b"\n"

    @property
    def age(self) -> float:
        """Seconds since it was renewed; 0 where the other host's clock is ahead."""
        return max(0.0, time.time() - self.time)

    @property
    def old(self) -> bool:
        """Whether its holder may be dead."""
        return self.age >= STALE

    @property
    def here(self) -> bool:
        """Whether this process can see its holder's."""
        return self.place == place()

    @property
    def ended(self) -> bool:
        """Whether its holder is known to have ended."""
        if not self.here:
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.since) > 1)
        except psutil.Error:
            return True

    def __str__(self) -> str:
        return f"host {self.host}, process {self.pid}, last heard of {self.age:.0f} s ago"


def claims(folder: Path) -> Iterator[tuple[int, Path, Claim]]:
    """Yield a folder's claims, the one that holds first: its number, its file and what it says."""
    numbers = [path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*")]
    for number in sorted((int(n) for n in numbers if n.isdigit()), reverse=True):
        path = folder / f"{PREFIX}{number}"
        if (claim := Claim.read(path)) is not None:
            yield number, path, claim


def holder_of(folder: Path) -> Claim | None:
    """Return the claim of whoever works on a folder, dead or alive; None where nobody does."""
    return next((claim for _, _, claim in claims(folder)), None)


def claimed(folder: Path) -> bool:
    """Say whether a folder's holder must be taken to be alive."""
    claim = holder_of(folder)
    return claim is not None and not claim.ended and not claim.old
