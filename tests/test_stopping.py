"""Ctrl-C and SIGTERM: saved within ten seconds whatever is under way, and the run goes on to the same numbers."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launching import ACCELERATE, ENVIRONMENT, LAUNCH, SLOW_RUN
from sharing import Once
from test_sweep import left_alone

from overopt_bench.recording.sessions import read_sessions

RUN = ["-m", "overopt_bench", "run", *SLOW_RUN, "--out"]
FOLDER = Path("mini/slow/ddpo/seed0")


def events(out: Path) -> list[dict[str, Any]]:
    """The record without the clock."""
    rows = [json.loads(line) for line in (out / FOLDER / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def hear_hangups() -> None:
    """In a child: a run ignores SIGHUP where its parent does, as under nohup, which the tests may be under too."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def stopped(start: list[str], out: Path, number: int, slow: float, group: bool = False) -> tuple[int, list[str]]:
    """Start a run, stop it in its second round and wait: exit status and lines of the terminal.

    Args:
        group: signal the whole process group, as a terminal does for Ctrl-C.
    """
    log = out.with_suffix(".log")
    with open(log, "w") as terminal:
        process = subprocess.Popen(
            [*start, *RUN, str(out)], stdout=terminal, stderr=terminal, start_new_session=True,
            env={**ENVIRONMENT, "SLOW_SECONDS": str(slow)}, preexec_fn=hear_hangups,
        )  # fmt: skip
    record, deadline = out / FOLDER / "metrics.jsonl", time.monotonic() + 600
    while not record.exists() or b'"round": 1,' not in record.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    time.sleep(0.3)  # into the next round's rewards
    asked = time.time()
    os.killpg(process.pid, number) if group else process.send_signal(number)
    process.wait(timeout=600)
    assert (out / FOLDER / "status.json").stat().st_mtime - asked < 10
    time.sleep(1)  # the last line waits for the launcher's end
    return process.returncode, log.read_text().rstrip().splitlines()


def go_on(start: list[str], words: list[str]) -> None:
    """Run ``overopt-bench`` to the end, started by Python or by a launcher."""
    done = subprocess.run([*start, "-m", "overopt_bench", *words], env=ENVIRONMENT, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def saved(out: Path, lines: list[str], name: str) -> list[str]:
    """The run is saved before its second round; gives the words of its last line, which is the command that goes on."""
    status = json.loads((out / FOLDER / "status.json").read_text())
    assert status == {"state": "interrupted", "queries": 16, "reason": f"stopped by {name}"}, lines
    assert not list((out / FOLDER).glob(".claim-*"))
    words = shlex.split(lines[-1])
    assert words[0] in ("overopt-bench", "torchrun") and str(out / FOLDER / "config.json") in words
    return words


def check_end(out: Path, words: list[str], whole: Path) -> None:
    """The printed command leads to the end of a run that was left alone."""
    launcher = [] if words[0] == "overopt-bench" else ["-m", "torch.distributed.run", *words[1:4]]
    go_on([sys.executable, *launcher], words[words.index("run") :])
    assert [s["queries"] for s in read_sessions(out / FOLDER)] == [0, 16]
    assert events(out) == events(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "slow"), [("SIGTERM", 14), ("SIGINT", 1), ("SIGHUP", 1)]
)  # fmt: skip
def test_one_process(name: str, slow: float, tmp_path: Path, once: Once) -> None:
    code, lines = stopped([sys.executable], tmp_path / "run", getattr(signal, name), slow)
    assert code == 75
    words = saved(tmp_path / "run", lines, name)
    if name == "SIGTERM":  # after which everything else is as after the others
        check_end(tmp_path / "run", words, left_alone(once))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "slow", "group"), [("SIGTERM", 14, False), ("SIGINT", 1, True)])
def test_two_processes(name: str, slow: float, group: bool, tmp_path: Path, once: Once) -> None:
    """Under a launcher, whose own traceback must not come last; a terminal's Ctrl-C reaches all processes at once."""
    _, lines = stopped(ACCELERATE, tmp_path / "run", getattr(signal, name), slow, group)
    words = saved(tmp_path / "run", lines, name)
    if name == "SIGTERM":
        whole = tmp_path / "whole"
        go_on(LAUNCH, [*RUN[2:], str(whole)])
        check_end(tmp_path / "run", words, whole)
