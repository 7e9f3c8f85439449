"""Sweeps: runs side by side, one by its index, a frozen grid, and what is handed to clusters."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_cells import fake_cells
from fake_train import SWEEP, FakeTrain
from launching import ENVIRONMENT, SLOW_PLUGIN, SLOW_RUN
from sharing import Once

from overopt_bench.cli import main
from overopt_bench.commands import workers
from overopt_bench.commands.states import Board, spent
from overopt_bench.commands.workers import run_side_by_side
from overopt_bench.errors import RunError, Stopped

TINY_RUNS = [*SLOW_RUN, "--seeds", "0-1"]
START = [sys.executable, "-m", "overopt_bench", "sweep", *TINY_RUNS]


@pytest.fixture
def frozen(train: FakeTrain, tiny: Path) -> str:
    """A grid of four runs in the file ``grid.json``."""
    assert main([*SWEEP, "--plugin", str(tiny), "--set", "climb.lr=0.5", "--budget", "9", "--write", "grid.json"]) == 0
    assert train.calls == []
    return "grid.json"


def test_a_failure_leaves_the_others_running_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = fake_cells(tmp_path, "fail", "end", "die", "refuse", "break", "end")
    with pytest.raises(RunError, match="4 of 6 runs failed") as failed:
        run_side_by_side(cells, range(6), 2)
    for text in (
        "seed0 (the loss is not finite; ",
        "seed2 (killed by SIGKILL; ",
        "seed3 (no such card; ",
        "(ValueError: odd; ",
    ):
        assert text in str(failed.value)
    out = capsys.readouterr().out
    assert "1 complete: " in out and "5 complete: " in out and "2 complete, 4 failed" in out
    started = sorted(path.name.split("-") for path in tmp_path.glob("*-*"))
    assert [index for index, _, _ in started] == list("012345") and {threads for *_, threads in started} == {"1"}
    assert len({process for _, process, _ in started} - {str(os.getpid())}) == 6
    assert "about to fail\nerror: the loss" in next((tmp_path / ".sweep").glob("*seed0*")).read_text()


def test_a_stop_reaches_all_and_nothing_more_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = fake_cells(tmp_path, "wait", "wait", "end")

    def stop() -> None:
        while len(list(tmp_path.glob("*-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop).start()
    with pytest.raises(Stopped) as stopped:
        run_side_by_side(cells, range(3), 2)
    assert stopped.value.code == 75 and not list(tmp_path.glob("2-*"))
    assert "1 waiting, 2 interrupted" in capsys.readouterr().out


def test_as_many_as_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(workers, "cores", lambda: 6)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [workers.default_jobs(device) for device in ("cpu", "cuda", "cuda:1")] == [6, 3, 1]
    assert workers.cards("cuda") == ["cuda:0", "cuda:1", "cuda:2"]


def test_the_board_tells_states_and_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a budget in ten seconds: ten more for the run, and twenty each for two that wait, on two workers."""
    cells, now = fake_cells(tmp_path, "end", "end", "end", "end"), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    board = Board(cells, range(4), 2)
    assert board.left() is None
    board.began(0)
    board.began(1)
    cells.folder(0).mkdir(parents=True)
    row = {"event": "train", "queries": cells.configs[0].budget / 2}
    (cells.folder(0) / "metrics.jsonl").write_text(
        '{"event": "eval"}\n' + json.dumps(row) + '\n{"event": "eval"}\n{"ev'
    )
    assert spent(cells.configs[0], cells.folder(0)) == 0.5 and spent(cells.configs[1], cells.folder(1)) == 0
    now[0] += 10
    assert board.left() == (10 + 20 + 2 * 20) / 2
    board.ended(1, 1, "odd")
    assert board.summary() == "1 running, 2 waiting, 1 failed; about 0:25 left"
    assert [next(iter(column.cells)) for column in board.table().columns][2:] == ["running", "50%", "0:10"]


def test_an_index_is_one_run_whoever_tells_it(
    frozen: str, train: FakeTrain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "--grid", frozen, "--index", "2"]) == 0
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    assert main(["sweep", "--grid", frozen, "--out", "there"]) == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert main([*SWEEP, "--out", "third"]) == 0
    told = [(config.algo, config.seed, config.budget, rest["out"].name) for config, rest in train.calls]
    assert told == [("slide", 0, 9, "results"), ("slide", 1, 9, "there"), ("climb", 1, 64, "third")]
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "4")
    capsys.readouterr()
    assert main(["sweep", "--grid", frozen]) == 2
    assert "there is no run 4; allowed: 0 to 3" in capsys.readouterr().err


def test_a_list_has_index_state_and_command(frozen: str, train: FakeTrain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--grid", frozen, "--index", "1"]) == 0
    (Path("results/tiny/darkness/climb/seed1/status.json")).write_text('{"state": "running"}')  # and it was killed
    assert main(["sweep", "--grid", frozen, "--index", "2"]) == 0
    capsys.readouterr()
    assert main(["sweep", "--grid", frozen, "--list"]) == 0
    states = ["waiting", "interrupted", "complete", "waiting"]
    lines = [f"{i}  {state:<11}  overopt-bench sweep --grid grid.json --index {i}" for i, state in enumerate(states)]
    assert capsys.readouterr().out.splitlines() == lines
    assert main([*SWEEP, "--set", "climb.lr=0.25", "--list"]) == 0
    line = capsys.readouterr().out.splitlines()[3]
    assert (
        "--algo climb,slide --proxy darkness --seeds 0-1" in line
        and "--set climb.lr=0.25" in line
        and "--index 3" in line
    )
    assert "--list" not in line


def test_a_frozen_grid_stays_what_it_was(frozen: str, train: FakeTrain, capsys: pytest.CaptureFixture[str]) -> None:
    content = Path(frozen).read_text()
    assert content.count('"lr": 0.5') == 2 and "--plugin" not in content
    bad = {
        (*SWEEP, "--write", frozen): "holds another grid",
        ("sweep", "--grid", frozen, "--budget", "3"): "fixes the settings of its runs: leave --budget out",
        ("sweep", "--grid", frozen, "--seeds", "3"): "leave --seeds out",
        ("sweep", "--grid", "absent.json"): "absent.json: No such file",
        ("sweep",): "--algo is required, or --grid FILE",
        ("sweep", "--grid", frozen, "--dry-run"): "--executor slurm",
    }
    for words, message in bad.items():
        assert main([*words]) == 2 and message in capsys.readouterr().err
    Path(frozen).write_text(content.replace('"lr": 0.5', '"lr": 0.25'))
    assert main(["sweep", "--grid", frozen, "--list"]) == 2
    assert "run 0 is another one in this version" in capsys.readouterr().err
    Path(frozen).write_text("{}")
    assert main(["sweep", "--grid", frozen, "--list"]) == 2
    assert "not a file that `sweep --write` made" in capsys.readouterr().err


def test_an_array_of_slurm_jobs(
    frozen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    assert main(["sweep", "--grid", frozen, "--index", "2"]) == 0
    monkeypatch.setenv("PATH", "/nowhere")
    start = ["sweep", "--grid", frozen, "--executor", "slurm", "--jobs", "8", "--resource", "time=4:00:00"]
    capsys.readouterr()
    assert main([*start, "--resource", "setup=module load cuda", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    options = ("--array=0-1,3%8", "--time=4:00:00", "--requeue", "--signal=TERM@60", "--cpus-per-task=1")
    assert {f"#SBATCH {option}" for option in options} <= set(lines) and "module load cuda" in lines
    assert any(f"sweep --grid {Path(frozen).absolute()} --out" in line for line in lines)
    assert '[ "$status" != 75 ] || scontrol requeue "$SLURM_JOB_ID"' in lines
    assert main(start) == 2
    assert "there is no sbatch here" in capsys.readouterr().err
    assert main([*start, "--resource", "array=1"]) == 2


def test_a_kubernetes_job_is_valid_and_does_not_retry_bad_input(
    frozen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    capsys.readouterr()
    start = ["sweep", "--grid", frozen, "--emit", "kubernetes", "--jobs", "3", "--resource", "gpu=1"]
    assert main([*start, "--resource", "image=me/bench:1"]) == 0
    grid, job = (dict[str, Any](one) for one in yaml.safe_load_all(capsys.readouterr().out))
    for version in ("1.33", "1.37"):
        validate(grid, version, strict=True)
        validate(job, version, strict=True)
    assert grid["data"]["grid.json"] == Path(frozen).read_text()
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (4, 3, "Indexed")
    assert spec["backoffLimitPerIndex"] > 0 and spec["podReplacementPolicy"] == "Failed"
    disrupted, interrupted, refused = spec["podFailurePolicy"]["rules"]
    assert disrupted["onPodConditions"][0]["type"] == "DisruptionTarget" and disrupted["action"] == "Ignore"
    assert (interrupted["action"], interrupted["onExitCodes"]["values"]) == ("Ignore", [75])
    assert (refused["action"], refused["onExitCodes"]["values"]) == ("FailIndex", [2])
    assert main(start) == 2 and "--resource image=NAME" in capsys.readouterr().err
    assert main([*start, "--resource", "disk=1"]) == 2


def record(folder: Path) -> dict[str, Any]:
    """What a run leaves behind, without the clock: rows, and the bytes of pictures, weights and configuration."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = {p.name: p.read_bytes() for kind in ("images/*", "adapter/*", "*.json") for p in folder.glob(kind)}
    return {**files, "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in rows]}


def left_alone(once: Once) -> Path:
    """The folder of ``TINY_RUNS``, one after the other and never interrupted."""

    def make(out: Path) -> None:
        words = [*START, "--jobs", "1", "--out", str(out)]
        done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    return once("tiny_runs", make)


@pytest.mark.slow
def test_interrupted_and_gone_on_with_it_equals_a_serial_sweep(tmp_path: Path, once: Once) -> None:
    side = [*START, "--jobs", "2", "--out", str(tmp_path / "side")]
    runs = [tmp_path / "side" / "mini/slow/ddpo" / f"seed{seed}" for seed in (0, 1)]
    with subprocess.Popen(side, env={**ENVIRONMENT, "SLOW_SECONDS": "5"}, stdout=subprocess.PIPE, text=True) as sweep:
        while not all(
            (r / "metrics.jsonl").exists() and b'"event": "train"' in (r / "metrics.jsonl").read_bytes() for r in runs
        ):
            assert sweep.poll() is None
            time.sleep(0.05)
        sweep.send_signal(signal.SIGINT)
        assert sweep.stdout is not None
        last = sweep.stdout.read().splitlines()[-1].strip()
        assert sweep.wait() == 75
    assert last.startswith("overopt-bench sweep --") and f"--plugin {SLOW_PLUGIN}" in last and "--jobs 2" in last
    assert {json.loads((run / "status.json").read_text())["state"] for run in runs} == {"interrupted"}
    done = subprocess.run(side, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for run in runs:
        assert record(run) == record(left_alone(once) / run.relative_to(tmp_path / "side"))
