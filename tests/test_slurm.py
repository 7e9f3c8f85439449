"""A sweep as an array of jobs of a real Slurm: one is requeued in the middle, and all end as in a sweep left alone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import one_node
import pytest
from sharing import Once
from test_sweep import TINY_RUNS, left_alone, record

from overopt_bench.recording.sessions import read_sessions

START = [sys.executable, "-m", "overopt_bench", "sweep"]


def sweep(*words: str | Path, slow: int = 0) -> str:
    """What a sweep prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SLOW_SECONDS": str(slow)}  # SLURM_CONF among them
    done = subprocess.run([*START, *map(str, words)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def until(done: bool, deadline: float, log: Path) -> bool:
    """Wait a moment where it is not done; fail with the jobs' output after the deadline."""
    if not done:
        texts = [path.read_text() for path in log.glob("*.out")]
        assert time.monotonic() < deadline, "\n".join([one_node.ask("scontrol", "show", "job"), *texts])
        time.sleep(0.1)
    return done


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(bool(one_node.absent()), reason=one_node.absent())
def test_an_array_with_a_requeued_job_equals_a_local_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: Once
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("SLURM_CONF", "")
    cut = tmp_path / "cut"
    runs = [cut / "mini/slow/ddpo" / f"seed{seed}" for seed in (0, 1)]
    deadline, log = time.monotonic() + 600, cut / ".sweep"
    sweep(*TINY_RUNS, "--out", cut, "--write", tmp_path / "grid.json")
    with one_node.cluster(tmp_path / "slurm"):
        said = sweep("--grid", tmp_path / "grid.json", "--executor", "slurm", slow=2)
        job = re.findall(r"submitted 2 runs as job (\d+)", said)[0]
        rows = runs[1] / "metrics.jsonl"
        while not until(rows.exists() and b'"event": "train"' in rows.read_bytes(), deadline, log):
            pass
        one_node.ask("scontrol", "requeue", f"{job}_1")
        while not until("PENDING" in one_node.ask("squeue", "-h", "-j", f"{job}_1", "-o", "%T"), deadline, log):
            pass
        assert json.loads((runs[1] / "status.json").read_text())["state"] == "interrupted"
        one_node.ask("scontrol", "update", f"JobId={job}_1", "StartTime=now")  # a requeued job else waits two minutes
        while not until(one_node.ask("squeue", "-h") == "", deadline, log):
            pass
    assert [len(read_sessions(run)) for run in runs] == [1, 2]
    for run in runs:
        assert record(run) == record(left_alone(once) / run.relative_to(cut))
