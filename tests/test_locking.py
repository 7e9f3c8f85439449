"""One writer for a run folder, also where the file system has no locks or keeps those of the dead."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import pytest

from overopt_bench.cli import main
from overopt_bench.errors import RunError, UserError
from overopt_bench.recording import claims, locking
from overopt_bench.recording.locking import RunLock

HELD = (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), OSError(errno.ENOSYS, ""), NotImplementedError("no flock"))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system without locks."""
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(HELD[0]))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders renew their claims often, and old ones are watched as briefly."""
    monkeypatch.setattr(locking, "BEAT", 0.02)
    monkeypatch.setattr(locking, "WATCH", 0.3)


def claim(folder: Path, host: str, seconds: float, number: int = 1, **more: Any) -> Path:
    """The claim of another process, renewed this many seconds ago."""
    path = folder / f".claim-{number}"
    beat = {"place": host, "pid": 1, "since": 0.0, "holder": "other", "time": time.time() - seconds, **more}
    path.write_text(json.dumps({"host": host, **beat}))
    return path


def held(folder: Path) -> dict[str, Any]:
    """The one claim of a folder."""
    (path,) = folder.glob(".claim-*")
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize("error", HELD)
def test_without_locks_the_claim_decides(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    first = RunLock(tmp_path)
    assert (held(tmp_path)["host"], held(tmp_path)["pid"]) == (platform.node(), os.getpid())
    with pytest.raises(
        UserError, match=rf"another process .*host {platform.node()}, process {os.getpid()}, last heard"
    ):
        RunLock(tmp_path)
    first.release()
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path).release()


@pytest.mark.parametrize("take_over", [False, True])
def test_a_young_claim_of_another_host_is_respected(no_locks: None, take_over: bool, tmp_path: Path) -> None:
    claim(tmp_path, "elsewhere", 20)
    with pytest.raises(UserError, match="host elsewhere, process 1, last heard of 20 s ago"):
        RunLock(tmp_path, take_over)


def test_so_it_is_where_a_lock_does_not_reach_other_hosts(tmp_path: Path) -> None:
    claim(tmp_path, "elsewhere", 20)
    with pytest.raises(UserError, match="elsewhere"):
        RunLock(tmp_path)


@pytest.mark.parametrize("locks", [True, False])
def test_an_old_claim_is_taken_over_and_said_so(
    locks: bool, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if not locks:
        request.getfixturevalue("no_locks")
    claim(tmp_path, "elsewhere", 120, number=3)
    lock = RunLock(tmp_path)
    assert held(tmp_path)["pid"] == os.getpid() and (tmp_path / ".claim-4").exists()
    said = capsys.readouterr().err
    assert "(host elsewhere, process 1, last heard of 120 s ago) is old" in said and "takes the folder over" in said
    lock.release()


def test_a_claim_that_looks_old_by_another_clock_is_respected_while_it_is_renewed(
    no_locks: None, tmp_path: Path
) -> None:
    path, ended = claim(tmp_path, "elsewhere", 500), threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            held_by = {**json.loads(path.read_text()), "time": time.time() - 500}
            path.write_text(json.dumps(held_by))

    other = threading.Thread(target=renew)
    other.start()
    try:
        with pytest.raises(UserError, match="another process is working"):
            RunLock(tmp_path)
    finally:
        ended.set()
        other.join()
    assert held(tmp_path)["host"] == "elsewhere"


def test_of_two_that_take_over_one_gets_it(no_locks: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both see the same dead holder; the claim above it can be made once."""
    claim(tmp_path, "elsewhere", 120)

    def faster(seconds: float) -> None:  # while this one watches
        claim(tmp_path, "third", 0, number=2)

    monkeypatch.setattr(locking.time, "sleep", faster)
    with pytest.raises(UserError, match="another process is working"):
        RunLock(tmp_path)
    assert json.loads((tmp_path / ".claim-2").read_text())["host"] == "third"


def test_many_processes_at_once_are_one_holder(tmp_path: Path) -> None:
    """Without file locks, on a claim of a dead host: exactly one gets the folder, every time."""
    for _ in range(5):
        for path in tmp_path.glob(".claim-*"):
            path.unlink()
        claim(tmp_path, "elsewhere", 120)
        start = threading.Barrier(6)

        def take(start: threading.Barrier = start) -> RunLock | None:
            lock = object.__new__(RunLock)
            lock.folder, lock._holder, lock._lock = tmp_path, uuid.uuid4().hex, None
            start.wait()
            try:
                lock._claim()
            except UserError:
                return None
            return lock

        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(6) as pool:
            patch.setattr(locking, "WATCH", 0.0)
            holders = [lock for lock in pool.map(lambda _: take(), range(6)) if lock is not None]
        assert len(holders) <= 1
        if holders:
            assert held(tmp_path)["holder"] == holders[0]._holder


def test_a_lock_that_a_dead_host_keeps_may_be_taken_over(tmp_path: Path) -> None:
    other = filelock.FileLock(tmp_path / ".lock")
    with other:
        claim(tmp_path, "elsewhere", 120)
        with pytest.raises(UserError, match="--take-over"):
            RunLock(tmp_path)
        lock = RunLock(tmp_path, take_over=True)
        with pytest.raises(UserError, match="another process"):
            RunLock(tmp_path, take_over=True)
        lock.release()


def test_a_killed_process_of_this_host_holds_nothing(no_locks: None, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    claim(tmp_path, platform.node(), 1, place=claims.place(), pid=process.pid)
    RunLock(tmp_path).release()
    claim(tmp_path, platform.node(), 1, place=claims.place(), pid=os.getpid(), since=1.0)  # the id is used again
    RunLock(tmp_path).release()


def test_a_container_of_the_same_name_is_another_place(no_locks: None, tmp_path: Path) -> None:
    """As the pod that replaces one of an Indexed Job, whose process ids mean nothing to each other."""
    claim(tmp_path, platform.node(), 1, pid=2**22 + 1)
    with pytest.raises(UserError, match="another process"):
        RunLock(tmp_path)


def test_a_retry_waits_for_the_claim_of_the_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(locking, "STALE", 60.0)
    claim(tmp_path, "elsewhere", 59.5)
    locking.await_claim(tmp_path)
    assert not claims.claimed(tmp_path) and "is claimed (host elsewhere" in capsys.readouterr().out
    monkeypatch.setattr(locking, "STALE", 0.1)
    claim(tmp_path, "elsewhere", 0)
    locking.await_claim(tmp_path)  # it is alive: no longer than a dead one would need
    assert claims.claimed(tmp_path)


def test_who_was_taken_over_stops(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    time.sleep(0.1)
    lock.check()
    claim(tmp_path, "elsewhere", 0, number=2)
    time.sleep(0.2)
    with pytest.raises(RunError, match=r"taken over by another process .*elsewhere"):
        lock.check()
    lock.release()
    assert held(tmp_path)["host"] == "elsewhere"


def test_who_was_suspended_looks_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that renews may come second when a stopped process goes on."""
    monkeypatch.setattr(locking, "BEAT", 60.0)
    lock = RunLock(tmp_path)
    claim(tmp_path, "elsewhere", 0, number=2)
    lock.check()  # it renewed a moment ago
    lock._renewed -= 121
    with pytest.raises(RunError, match="elsewhere"):
        lock.check()
    lock.release()


def test_a_removed_claim_is_not_made_again(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    (tmp_path / ".claim-1").unlink()
    time.sleep(0.2)
    with pytest.raises(RunError, match="its claim was removed"):
        lock.check()
    assert not list(tmp_path.glob(".claim-*"))
    lock.release()


def test_the_claim_is_renewed(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    first = held(tmp_path)["time"]
    time.sleep(0.2)
    assert held(tmp_path)["time"] > first
    lock.release()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_folder_that_cannot_be_locked_is_one_line_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    words = [
        "run",
        "--algo",
        "base",
        "--proxy",
        "aesthetic",
        "--suite",
        "mini",
        "--device",
        "cpu",
        "--eval-images",
        "4",
    ]
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert f"{os.strerror(number)}; use another --out" in capsys.readouterr().err
    assert not list(tmp_path.rglob("seed0"))
