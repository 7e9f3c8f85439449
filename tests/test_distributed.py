"""Several processes: the update is that of one process with the same batch, one writes, and none waits for a dead one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from distributed_step import SETTINGS
from launching import ACCELERATE, ENVIRONMENT, LAUNCH

from overopt_bench.recording.sessions import read_sessions

HERE = Path(__file__).parent
RUN = [
    "-m", "overopt_bench", "run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--device", "cpu",
    "--eval-points", "2", "--eval-images", "8", "--set", "samples_per_epoch=16", "--set", "images_per_prompt=8",
]  # fmt: skip


def launch(arguments: list[str], processes: int) -> Any:
    """What ``arguments`` saved in its last argument."""
    start = [sys.executable] if processes == 1 else LAUNCH
    done = subprocess.run([*start, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return torch.load(arguments[-1], weights_only=True)


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    """Shares of unequal size (10, 5 and 1 samples in micro-batches of 3), rewards, statistics, critic and gradient."""
    script = str(HERE / "distributed_step.py")
    one, two = launch([script, str(tmp_path / "1.pt")], 1), launch([script, str(tmp_path / "2.pt")], 2)
    assert (one["processes"], two["processes"]) == (1, 2)
    for algo in SETTINGS:
        a, b = one[algo], two[algo]
        if algo != "rwr":  # in which each process passes through the whole batch
            assert a["spent"] == b["spent"], algo
        assert (a["weights"] - b["weights"]).norm() <= 1e-5 * a["weights"].norm(), algo
        assert (a["gradient"] - b["gradient"]).norm() <= 1e-5 * a["gradient"].norm(), algo
        assert a["gradient"].norm() > 0 or algo == "tdpo_r of one"  # whose only sample has no advantage
        assert a["metrics"].keys() == b["metrics"].keys()
        for name, value in a["metrics"].items():
            assert b["metrics"][name] == pytest.approx(value, rel=1e-2, abs=1e-5), (algo, name)
        for prompt, rewards in a["stats"].items():
            assert b["stats"][prompt] == pytest.approx(rewards, rel=1e-4), (algo, prompt)
    before, after = one["tdpo_r"]["critic"], two["tdpo_r"]["critic"]
    assert [e["when"] for e in before] == [e["when"] for e in after] and len(before) > 1
    for a, b in zip(
        before, after, strict=True
    ):  # counts of neurons, of which rounding may move a few over the threshold
        assert b["all"]["dormant"]["0"] == pytest.approx(a["all"]["dormant"]["0"], abs=0.02 * a["all"]["units"])


@pytest.mark.slow
def test_one_process_writes_and_the_run_is_that_of_one(tmp_path: Path) -> None:
    tables = []
    for name, start in (("one", [sys.executable]), ("two", LAUNCH)):
        # 16, 16 and 1 samples and 1 held-out image: one process has nothing to do in the last round and in evaluations
        words = [*start, *RUN, "--budget", "33", "--eval-images", "2", "--out", str(tmp_path / name)]
        done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert len(re.findall("suite mini", done.stdout)) == 1
        folder = tmp_path / name / "mini/aesthetic/ddpo/seed0"
        tables.append([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert [(e["event"], e["queries"], e["nfe"]) for e in tables[0]] == [
        (e["event"], e["queries"], e["nfe"]) for e in tables[1]
    ]
    for a, b in zip(*tables, strict=True):
        if a["event"] == "eval":
            assert b["train/human/mean"] == pytest.approx(a["train/human/mean"], abs=1e-3)
            assert b["train/sqrt_kl"] == pytest.approx(a["train/sqrt_kl"], rel=1e-2, abs=1e-6)
    assert tables[0][-1]["queries"] == 33
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    assert read_sessions(folder)[0]["hardware"]["processes"] == 2


@pytest.mark.slow
def test_a_dead_process_ends_the_run(tmp_path: Path) -> None:
    words = [*LAUNCH, *RUN, "--budget", "100000", "--out", str(tmp_path)]
    folder = tmp_path / "mini/aesthetic/ddpo/seed0"
    with open(tmp_path / "log", "w+") as log, launched(words, log) as run:
        metrics = folder / "metrics.jsonl"
        while not metrics.exists() or b'"event": "train"' not in metrics.read_bytes():
            assert run.poll() is None
            time.sleep(0.5)
        os.kill(child_of_rank(run.pid, 1), signal.SIGKILL)
        assert run.wait(timeout=600) != 0
        log.seek(0)
        said = log.read()
    status = json.loads((folder / "status.json").read_text())
    # the one that is left meets the silence of the other, or first hears the launcher, which stops it for the same reason
    if status["state"] == "failed":
        assert "error: another process of this run died or no longer answers" in said and "another" in status["reason"]
    else:
        assert status["state"] == "interrupted" and status["reason"] == "stopped by SIGTERM" and "go on with" in said
    # what was done up to the round that failed is saved
    assert max(int(path.stem) for path in (folder / "checkpoint").glob("*.pt")) == status["queries"] > 0


@contextmanager
def launched(command: list[str], log: IO[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command under way; ended with its children where the test fails, or it would train on for an hour."""
    with subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT) as process:
        try:
            yield process
        finally:
            process.terminate()


def child_of_rank(parent: int, rank: int) -> int:
    """The process id of one worker below the launcher."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes()
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if f"\0LOCAL_RANK={rank}\0".encode() in b"\0" + environment and int(fields[1]) == parent:
            return int(entry.name)
    raise AssertionError(f"no worker {rank} below {parent}")


@pytest.mark.slow
def test_bad_input_is_said_once_and_ends_all(tmp_path: Path) -> None:
    """The second process must not wait for what the first one refuses."""
    (tmp_path / "mini/aesthetic/ddpo/seed0").mkdir(parents=True)
    (tmp_path / "mini/aesthetic/ddpo/seed0/mine.txt").write_text("not a run")
    words = [*LAUNCH, *RUN, "--budget", "32", "--out", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT, timeout=600)
    assert done.returncode != 0
    assert done.stderr.count("exists and is not a run folder") == 1


SCRIPT = """
import sys
from pathlib import Path
from overopt_bench import api
for seed in (0, 1):
    api.run(
        algo="ddpo", proxy="aesthetic", suite="mini", device="cpu", budget=16, eval_points=2, eval_images=2, num_steps=2,
        seed=seed, set=["samples_per_epoch=16", "images_per_prompt=8"], out=Path(sys.argv[1]), tracker="tensorboard",
    )
"""


@pytest.mark.slow
def test_a_script_may_train_twice(tmp_path: Path) -> None:
    """With a tracker on the main process alone, which must not wait for the others or end their connection."""
    pytest.importorskip("tensorboard")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [*ACCELERATE, str(script), str(tmp_path / "out")], capture_output=True, text=True, env=ENVIRONMENT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    states = [json.loads(file.read_text())["state"] for file in (tmp_path / "out").rglob("status.json")]
    assert states == ["complete", "complete"]
