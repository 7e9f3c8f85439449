"""Whole runs on the mini suite: deterministic, resumable after any kill, honest about failure."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sharing import Once

from overopt_bench import api, cli
from overopt_bench.config import resolve
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.errors import RunError, Stopped, UserError
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.evaluation.splits import image_noise
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.registry import algorithms, rewards
from overopt_bench.training import loop as train
from overopt_bench.types import Transition

SMALL = {"suite": "mini", "budget": 96, "eval_points": 3, "eval_images": 4, "num_steps": 2}
SHORT = {"budget": 32, "eval_points": 2}  # one round, where no test asks for more
EPOCH = {"samples_per_epoch": 32, "images_per_prompt": 4}


def run(out: Path, algo: str = "ddpo", **changes: Any) -> Path:
    params = EPOCH if "dpo" in algo else {}
    return train.run(resolve({"algo": algo, "proxy": "aesthetic", "params": params, **SMALL, **changes}), out=out)


@pytest.fixture
def whole(once: Once) -> Path:
    """The folder of a run of DDPO that was left alone, with evaluations at both ends alone."""
    return next(once("whole_ddpo", lambda out: run(out, eval_points=2)).rglob("seed0"))


def events(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The record without the clock."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if not kinds or row["event"] in kinds]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(tmp_path: Path) -> None:
    first, second, other = (events(run(tmp_path / k, "tdpo_r", seed=s)) for k, s in (("a", 0), ("b", 0), ("c", 1)))
    assert first == second and first != other


def test_evaluating_more_often_changes_no_training_number(tmp_path: Path) -> None:
    few, many = (events(run(tmp_path / str(n), "tdpo", eval_points=n), "train", "critic") for n in (2, 4))
    assert few == many and len(few) > 3


def test_evaluation_points_hold_both_ends_and_the_budget_is_exact(tmp_path: Path) -> None:
    folder = run(tmp_path, budget=70)  # no multiple of the epoch's 32
    rows = events(folder, "eval")
    assert [r["queries"] for r in rows] == [0, 36, 70] or [r["queries"] for r in rows] == [0, 64, 70]
    assert sum(1 for _ in (folder / "images").glob("*.png")) == 3
    assert json.loads((folder / "status.json").read_text()) == {"state": "complete", "queries": 70, "reason": None}


@pytest.mark.parametrize(("unit", "budget"), [("nfe", 300), ("seconds", 1)])
def test_other_budgets_stop(unit: str, budget: int, tmp_path: Path) -> None:
    folder = run(tmp_path, budget=budget, budget_unit=unit)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last, before = rows[-1], [r for r in rows if r["event"] == "train"][:-1]
    assert last[unit] >= budget and all(r[unit] < budget for r in before)


def test_a_complete_run_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, **SHORT)
    before = (folder / "metrics.jsonl").read_bytes()
    run(tmp_path, **SHORT)
    assert (folder / "metrics.jsonl").read_bytes() == before and "is complete" in capsys.readouterr().out
    assert [session["queries"] for session in read_sessions(folder)] == [0]


def test_a_run_that_fails_at_once_keeps_the_checkpoint_that_it_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        rewards.get("aesthetic", "mini"), "__call__", lambda self, images, _: images[:, 0, 0, 0] * float("nan")
    )
    with pytest.raises(RunError, match=r"stopped at 0 queries, the last good checkpoint is kept in"):
        run(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.pt")] == ["000000000.pt"]


def test_a_reward_that_turns_nan_fails_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls, calls = rewards.get("aesthetic", "mini"), [0]
    good = cls.__call__

    def bad(self: Any, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        calls[0] += 1
        return good(self, images, prompts) * (float("nan") if calls[0] > 9 else 1)

    monkeypatch.setattr(cls, "__call__", bad)
    with pytest.raises(RunError, match=r"aesthetic.*nan.*the last good checkpoint is kept in"):
        run(tmp_path)
    folder = tmp_path / "mini" / "aesthetic" / "ddpo" / "seed0"
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and "aesthetic" in status["reason"]
    assert list((folder / "checkpoint").glob("*.pt"))
    monkeypatch.undo()
    assert events(run(tmp_path))[-1]["queries"] == 96  # mended, it goes on to the end


@pytest.mark.parametrize("error", [UserError("no more"), KeyError("x")])
def test_every_failure_says_so_and_keeps_what_was_done(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """In the third round; the state after the second is saved though no evaluation was near, and the end is the same."""
    cls: Any = algorithms.get("ddpo")
    step, calls = cls.step, [0]

    def failing(self: Any) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 3:
            raise error
        return dict(step(self))

    with monkeypatch.context() as patched:
        patched.setattr(cls, "step", failing)
        with pytest.raises(type(error)):
            run(tmp_path / "cut", eval_points=2)
    (file,) = (tmp_path / "cut").rglob("status.json")
    status = json.loads(file.read_text())
    assert (status["state"], status["queries"]) == ("failed", 64) and str(error) in status["reason"]
    assert not list(file.parent.glob(".claim-*"))
    assert events(run(tmp_path / "cut", eval_points=2)) == events(whole)
    assert [session["queries"] for session in read_sessions(file.parent)] == [0, 64]


def test_weights_that_are_not_finite_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    cls: Any = algorithms.get("ddpo")
    step = cls.step

    def breaking(self: Any) -> dict[str, float]:
        metrics = dict(step(self))
        next(iter(self.ctx.policy.trainable())).data.fill_(math.nan)
        return metrics

    with monkeypatch.context() as patched:
        patched.setattr(cls, "step", breaking)
        with pytest.raises(RunError, match="not finite"):
            run(tmp_path, eval_points=2)
    checkpoints = list(tmp_path.rglob("*.pt"))
    assert [path.name for path in checkpoints] == ["000000000.pt"]
    assert events(run(tmp_path, eval_points=2)) == events(whole)


def test_a_stop_in_an_evaluation_gives_it_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first split; the state before it is saved and the resumed run repeats it."""
    call, calls = Evaluator.__call__, [0]

    def stopping(self: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            draw = self.sampler.draw
            monkeypatch.setattr(self.sampler, "draw", lambda *a, **k: (draw(*a, **k), signal.raise_signal(2))[0])
        return call(self, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Evaluator, "__call__", stopping)
        with pytest.raises(Stopped):
            run(tmp_path / "cut")
    (file,) = (tmp_path / "cut").rglob("status.json")
    assert json.loads(file.read_text()) == {"state": "interrupted", "queries": 64, "reason": "stopped by SIGINT"}
    assert events(run(tmp_path / "cut")) == events(run(tmp_path / "whole"))


def command(out: Path, algo: str) -> list[str]:
    words = ["run", "--algo", algo, "--proxy", "aesthetic", "--out", str(out), "--device", "cpu"]
    words += [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return [*words, "--set", "samples_per_epoch=32", "--set", "images_per_prompt=4", "--budget", "160"]


def start(out: Path, algo: str, **pipes: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, with one thread as ``one_thread`` gives this one."""
    words = [sys.executable, "-m", "overopt_bench", *command(out, algo)]
    return subprocess.Popen(words, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)


@pytest.mark.slow
def test_killed_at_three_random_moments_it_ends_the_same(tmp_path: Path, one_thread: None) -> None:
    algo = "tdpo_r"  # which has the most to keep: a critic, its optimizer and its resets
    assert cli.main(command(tmp_path / "whole", algo)) == 0
    folder = Path("mini") / "aesthetic" / algo / "seed0"
    draw = random.Random(algo)
    for _ in range(3):
        process = start(tmp_path / "cut", algo, stdout=subprocess.DEVNULL)
        started = tmp_path / "cut" / folder / "metrics.jsonl"
        while process.poll() is None and not (started.exists() and started.stat().st_size):
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert cli.main(command(tmp_path / "cut", algo)) == 0
    assert events(tmp_path / "cut" / folder) == events(tmp_path / "whole" / folder)


def test_ctrl_c_saves_and_prints_the_command_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, "ddpo", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    folder = tmp_path / "mini" / "aesthetic" / "ddpo" / "seed0"
    while process.poll() is None and not list((folder / "checkpoint").glob("*.pt") if folder.exists() else []):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "overopt-bench run --config" in out and "Traceback" not in err
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


def test_ctrl_c_in_the_last_evaluation_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is complete, but a sweep must not go on to the next one."""
    evaluate = train._Session._evaluate

    def interrupted(session: Any) -> None:
        evaluate(session)
        if session.budget.exhausted:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train._Session, "_evaluate", interrupted)
    with pytest.raises(Stopped) as stopped:
        run(tmp_path, **SHORT)
    assert stopped.value.code == 75
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "complete"


def test_best_of_n_selects_among_what_the_budget_buys(tmp_path: Path) -> None:
    """96 queries are six samples of each of 16 prompts: two images, each the best of three."""
    folder = run(tmp_path, "best_of_n", params={"selected_per_prompt": 2})
    rows = events(folder, "eval")
    assert rows[-1]["queries"] == 96 and rows[-1]["n"] == 3
    assert rows[0]["train/image_kl"] == 0 and rows[-1]["train/image_kl"] == pytest.approx(math.log(3) - 2 / 3)
    assert not [key for key in rows[-1] if "path_kl" in key or key.endswith("sqrt_kl")]  # it has no chains
    halves = events(folder, "scores")[-1]
    assert halves["queries"] == 96 and len({*halves["prompts"]}) == 16 and halves["index"] == [0, 1] * 16
    assert rows[-1]["train/aesthetic/mean"] > rows[0]["train/aesthetic/mean"]


def test_eval_and_sample_read_the_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path, proxy="jpeg_compressibility", params={**EPOCH, "lr": 0.02}, **SHORT)
    table = api.eval(folder, ["fox face", "owl"], count=2).set_index("reward")
    assert table.loc["jpeg_compressibility", "role"] == "proxy" and table.loc["human", "role"] == "gold"
    assert (table["images"] == 4).all() and (table["change"].abs() > 0).all()
    assert table["change"].to_numpy() == pytest.approx((table["policy"] - table["base"]).to_numpy(), abs=1e-4)

    spoken = api.eval(folder, ["a thing without a name"], count=1).set_index("reward")
    assert "human" not in spoken.index and "human is left out" in capsys.readouterr().err

    files = api.sample(folder, ["fox face"], count=2, out=tmp_path / "drawn")
    assert [Image.open(f).size for f in files] == [(32, 32)] * 2


def test_evaluation_noise_depends_on_its_arguments_alone() -> None:
    a, b = image_noise(0, "fox", 1, (2, 3)), image_noise(0, "fox", 1, (2, 3))
    assert torch.equal(a, b)
    for other in ((1, "fox", 1), (0, "owl", 1), (0, "fox", 2)):
        assert not torch.equal(a, image_noise(*other, (2, 3)))


def test_rounding_that_fills_the_clip_range_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip range far below float32's error; not every processor rounds batches of other sizes otherwise, so it is added."""
    clean = DiffusionPolicy.transition

    def rounded(*args: Any, **options: Any) -> Transition:
        return replace(clean(*args, **options), mean=clean(*args, **options).mean * (1 + 2**-22))

    monkeypatch.setattr(DiffusionPolicy, "transition", rounded)
    params = {"samples_per_epoch": 16, "clip_range": 1e-12}
    folder = run(tmp_path, budget=32, eval_points=2, params=params)
    assert capsys.readouterr().err.count("of ratios are outside the clip range before any update") == 1
    assert all(row["clipfrac/first"] > 0.05 for row in events(folder, "train"))


def test_float32_leaves_the_published_clip_range_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params = {"samples_per_epoch": 16, "clip_range": 1e-4, "log_prob_reduction": "mean"}
    folder = run(tmp_path, budget=32, eval_points=2, params=params)
    assert [row["clipfrac/first"] for row in events(folder, "train")] == [0, 0]
    assert capsys.readouterr().err == ""
