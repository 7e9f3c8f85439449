"""One writer for a run folder, also where the file system has no locks or keeps those of the dead."""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import filelock
import pytest

from overopt_bench.cli import main
from overopt_bench.errors import RunError, UserError
from overopt_bench.recording import locking
from overopt_bench.recording.locking import RunLock

HELD = (OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)), NotImplementedError("no flock here"))


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system without locks."""
    monkeypatch.setattr(filelock.FileLock, "acquire", lambda *_, **__: (_ for _ in ()).throw(HELD[0]))


def heard(folder: Path, host: str, seconds: float, pid: int = 1) -> None:
    """The heartbeat of another process, this many seconds old."""
    beat = {"host": host, "pid": pid, "holder": "other", "time": time.time() - seconds}
    (folder / ".heartbeat").write_text(json.dumps(beat))


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("error", HELD)
def test_without_locks_the_heartbeat_decides(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def acquire(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    first = RunLock(tmp_path)
    with pytest.raises(
        UserError, match=rf"another process .*host {platform.node()}, process {os.getpid()}, last heard"
    ):
        RunLock(tmp_path)
    first.release()
    assert not (tmp_path / ".heartbeat").exists()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("take_over", [False, True])
def test_a_fresh_heartbeat_of_another_host_is_respected(no_locks: None, take_over: bool, tmp_path: Path) -> None:
    heard(tmp_path, "elsewhere", 20)
    with pytest.raises(UserError, match="host elsewhere, process 1, last heard of 20 s ago"):
        RunLock(tmp_path, take_over)


def test_so_it_is_where_a_lock_does_not_reach_other_hosts(tmp_path: Path) -> None:
    heard(tmp_path, "elsewhere", 20)
    with pytest.raises(UserError, match="elsewhere"):
        RunLock(tmp_path)
    heard(tmp_path, "elsewhere", 120)  # the lock is free and nobody was heard of: the run was killed
    RunLock(tmp_path).release()


def test_a_stale_heartbeat_may_be_taken_over(no_locks: None, tmp_path: Path) -> None:
    heard(tmp_path, "elsewhere", 120)
    with pytest.raises(UserError, match=r"last heard of 120 s ago\); if it is dead, --take-over goes on in its place"):
        RunLock(tmp_path)
    lock = RunLock(tmp_path, take_over=True)
    assert json.loads((tmp_path / ".heartbeat").read_text())["pid"] == os.getpid()
    lock.release()


def test_a_lock_that_a_dead_host_keeps_may_be_taken_over(tmp_path: Path) -> None:
    other = filelock.FileLock(tmp_path / ".lock")
    with other:
        heard(tmp_path, "elsewhere", 120)
        with pytest.raises(UserError, match="--take-over"):
            RunLock(tmp_path)
        lock = RunLock(tmp_path, take_over=True)
        with pytest.raises(UserError, match="another process"):
            RunLock(tmp_path, take_over=True)
        lock.release()


def test_a_killed_process_of_this_host_holds_nothing(no_locks: None, tmp_path: Path) -> None:
    heard(tmp_path, platform.node(), 1, dead_process())
    RunLock(tmp_path).release()


def test_who_was_taken_over_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "BEAT", 0.02)
    lock = RunLock(tmp_path)
    time.sleep(0.1)
    lock.check()
    heard(tmp_path, "elsewhere", 0)
    time.sleep(0.2)
    with pytest.raises(RunError, match=r"taken over by another process .*elsewhere"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / ".heartbeat").read_text())["host"] == "elsewhere"


def test_the_heartbeat_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "BEAT", 0.02)
    lock = RunLock(tmp_path)
    first = json.loads((tmp_path / ".heartbeat").read_text())["time"]
    time.sleep(0.2)
    assert json.loads((tmp_path / ".heartbeat").read_text())["time"] > first
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
