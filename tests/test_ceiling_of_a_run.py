"""``overopt-bench ceiling --run``: the returns are those of the run's policy, which what is written names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from overopt_bench import cli
from overopt_bench.commands.questions import Subject, choose
from overopt_bench.commands.requests import Questions
from overopt_bench.commands.trained import trained_policy, trained_queries
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.recording.identity import read_config
from overopt_bench.registry import get_suite

BUDGET = 8
TRAIN = [
    "run", "--suite", "mini", "--algo", "ddpo", "--proxy", "aesthetic", "--num-steps", "2", "--budget", str(BUDGET),
    "--eval-points", "2", "--eval-images", "4", "--device", "cpu", "--set", "samples_per_epoch=4",
    "--set", "images_per_prompt=2", "--set", "skip_last_steps=1",
]  # fmt: skip
ASK = ["ceiling", "--device", "cpu", "--images", "20"]


def train(out: Path, lr: str) -> Path:
    assert cli.main([*TRAIN, "--set", f"lr={lr}", "--out", str(out)]) == 0
    return out / "mini/aesthetic/ddpo/seed0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained"), "0.03")


def ask(out: Path, *words: str) -> dict[str, Any]:
    assert cli.main([*ASK, *words, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def numbers(found: Mapping[str, Any]) -> list[float]:
    rows = found["rows"]["aesthetic"]
    return [share[kind] for row in rows for share in (row["pooled"], *row["steps"]) for kind in ("value", "error")]


@pytest.mark.slow
def test_a_run_that_changed_nothing_has_the_numbers_of_the_base_model_and_another_run_has_not(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Proxy, steps and which of them are trained on are the run's where they are left out."""
    still = train(tmp_path / "still", "1e-30")
    base = ask(
        tmp_path / "base.json",
        *("--suite", "mini", "--proxy", "aesthetic", "--num-steps", "2", "--skip-last-steps", "1"),
    )
    same = ask(tmp_path / "same.json", "--run", str(still))
    capsys.readouterr()
    other = ask(tmp_path / "other.json", "--run", str(trained))
    said = " ".join(capsys.readouterr().out.split())
    assert numbers(same) == pytest.approx(numbers(base), abs=1e-5)
    assert max(abs(a - b) for a, b in zip(numbers(other), numbers(base), strict=True)) > 1e-3
    named = {"policy", "queries", "rows"}
    assert {k: v for k, v in same.items() if k not in named} == {k: v for k, v in base.items() if k not in named}
    whose = f"the policy of {trained} after {BUDGET} queries"
    assert (base["policy"], base["queries"]) == ("the base model", 0)
    assert (other["policy"], other["queries"]) == (whose, BUDGET)
    assert f"explained variance of returns of {whose}, 20 images" in said
    assert f"Returns are those of {whose}, by the last adapter that it saved, the only one that a run keeps." in said


@pytest.mark.slow
def test_another_proxy_than_the_runs_may_be_asked_about(trained: Path, tmp_path: Path) -> None:
    """The table says in every row whose returns they are."""
    assert cli.main([*ASK, "--run", str(trained), "--proxy", "pickscore", "--out", str(tmp_path / "a.csv")]) == 0
    table = pd.read_csv(tmp_path / "a.csv")
    assert set(table["proxy"]) == {"pickscore"} and set(table["queries"]) == {BUDGET}
    assert set(table["policy"]) == {f"the policy of {trained} after {BUDGET} queries"}


def test_the_checkpoint_of_the_same_weights_says_when_an_unfinished_run_saved_its_adapter(
    trained: Path, tmp_path: Path
) -> None:
    """A run that is stopped saves a checkpoint later than its adapter, and its status speaks of that one."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    policy = trained_policy(run, read_config(run), get_suite("mini"), Runtime(device="cpu"))
    assert trained_queries(run, policy) == BUDGET
    status = {"state": "interrupted", "queries": 99, "reason": "stopped"}
    (run / "status.json").write_text(json.dumps(status))
    checkpoints = run / "checkpoint"
    shutil.copy(checkpoints / f"{0:09d}.pt", checkpoints / f"{98:09d}.pt")  # other weights
    (checkpoints / f"{99:09d}.pt").write_bytes(b"damaged")
    assert trained_queries(run, policy) == BUDGET
    (checkpoints / f"{BUDGET:09d}.pt").unlink()
    assert trained_queries(run, policy) is None


def recorded(folder: Path, **settings: Any) -> Path:
    """A run folder that holds its configuration alone."""
    config = resolve({"suite": "mini", "algo": "ddpo", "proxy": "aesthetic", **settings})
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": config.model_dump(mode="json")}))
    return folder


def settled(run: Path, **asked: Any) -> Subject:
    return choose(Questions(run=run, **asked), None, None, Runtime(device="cpu"))


def test_what_is_not_asked_is_the_runs(tmp_path: Path) -> None:
    sampling = {"num_steps": 4, "guidance_scale": 1.5, "eta": 0.5, "lora_rank": 2, "precision": "bfloat16"}
    run = recorded(tmp_path / "run", proxy="pickscore", train_split="tuning", params={"skip_last_steps": 3}, **sampling)
    subject, tuning = settled(run), get_suite("mini").prompts["tuning"]
    assert {name: getattr(subject.settings, name) for name in sampling} == sampling
    assert (subject.proxies, subject.split, subject.prompts) == (("pickscore",), "tuning", tuning)
    assert subject.trained_steps == 1 and subject.suite.name == "mini"
    other = settled(run, proxy="aesthetic,hpsv2", train_split="train", skip_last_steps=1, num_steps=4)
    assert (other.proxies, other.split, other.trained_steps) == (("aesthetic", "hpsv2"), "train", 3)
    assert other.prompts == get_suite("mini").prompts["train"]


def test_the_prompts_of_a_run_are_its_own(tmp_path: Path) -> None:
    words = ("fox", "owl", "cat", "dog", "hen")
    run = recorded(tmp_path / "run", train_prompts=words)
    assert (settled(run).split, settled(run).prompts) == ("the run's own prompts", words)
    assert settled(run, train_split="train").prompts == get_suite("mini").prompts["train"]


@pytest.mark.parametrize(
    ("settings", "words", "message"),
    [
        ({}, ["--suite", "sd14"], "--suite sd14 contradicts --run"),
        ({}, ["--num-steps", "7"], "--num-steps 7 contradicts --run"),
        ({}, ["--model", "other"], "--model other contradicts --run"),
        ({}, ["--proxy", "aestetic"], "did you mean 'aesthetic'"),
        ({}, ["--train-split", "heldout"], "there is no prompt split to train on"),
        ({}, [], "has no adapter; a run saves it at its first evaluation"),
        ({"algo": "base"}, [], "base trains no policy, so there is no adapter to measure; leave out --run"),
        ({"algo": "best_of_n"}, [], "best_of_n trains no policy, so there is no adapter to measure; leave out --run"),
    ],
)
def test_a_run_that_cannot_be_asked_about_is_one_line_and_status_2(
    settings: dict[str, Any], words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded(tmp_path / "run", **settings)
    assert cli.main([*ASK, "--run", str(run), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASK, "--run", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
