"""What the command line imports before it answers: help, a refusal and `list` wait for nothing heavy."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from overopt_bench import announced, cli
from overopt_bench.errors import UserError
from overopt_bench.registry import Registry, algorithms, metrics, mitigations, rewards, suites
from overopt_bench.types import Algorithm

ROOT = Path(__file__).parents[1]
HEAVY = (
    "accelerate",
    "diffusers",
    "matplotlib",
    "numpy",
    "open_clip",
    "pandas",
    "peft",
    "PIL",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
# each argument line is run in turn in one new process, which says how it ended and what is imported by then
PROBE = """
import contextlib, io, json, sys
from overopt_bench import cli
for line in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main(line)
    print(json.dumps([status, said.getvalue(), [name for name in json.loads(sys.argv[2]) if name in sys.modules]]))
"""
DDPO = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--out", "nowhere"]
REFUSALS: list[tuple[list[str], str]] = [
    (["list", "algorithm"], "did you mean 'algorithms'"),
    (["run", "--algo", "ddpoo", "--proxy", "aesthetic"], "did you mean 'ddpo'"),
    (["run", "--algo", "ddpo", "--proxy", "aestetic"], "did you mean 'aesthetic'"),
    (["run", "--algo", "ddpo", "--proxy", "hpsv2_1", "--suite", "mini"], "is not in the suite 'mini' but in sd"),
    (["run", "--algo", "ddpo", "--proxy", "uvo:aesthetic+hpsv2"], "did you mean 'uwo'"),
    ([*DDPO, "--suite", "nimi"], "did you mean 'mini'"),
    ([*DDPO, "--gold", "humen"], "did you mean 'human'"),
    ([*DDPO, "--budget", "-3"], "budget=-3: should be greater than 0"),
    ([*DDPO, "--bugdet", "3"], "No such option: --bugdet"),
    ([*DDPO, "--device", "gpu"], "--device gpu: allowed are cpu, cuda and cuda:N"),
    ([*DDPO, "--set", "lr=-1"], "lr=-1: should be greater than 0"),
    ([*DDPO, "--set", "rl=1"], "there is no ddpo parameter 'rl'"),
    ([*DDPO, "--mitigation", "kl:beta=-1"], "beta=-1: should be greater than or equal to 0"),
    ([*DDPO, "--mitigation", "lk:beta=1"], "there is no mitigation 'lk'"),
    ([*DDPO, "--train-split", "tunning"], "did you mean 'tuning'"),
    ([*DDPO, "--prompts", "no_such.txt"], "no_such.txt"),
    ([*DDPO, "--config", "no_such.yaml"], "no_such.yaml"),
    (["sweep", "--algo", "ddpo,tdqo", "--proxy", "aesthetic", "--suite", "mini"], "did you mean 'tdpo'"),
    (["sample", "nowhere", "--prompt", "a cat"], "nowhere is not a run folder"),
    (["eval", "nowhere"], "nowhere is not a run folder"),
    (["ceiling", "--proxy", "aestetic", "--suite", "mini"], "did you mean 'aesthetic'"),
    (["ceiling", "--run", "nowhere"], "nowhere is not a run folder"),
    (["compare", "ddpo", "tpdo", "--results", "results/reference"], "did you mean 'tdpo'"),
    (["compare", "ddpo", "tdpo", "--results", "nowhere"], "--results nowhere is no folder"),
    (["compare", "ddpo", "ddpo", "--results", "results/reference"], "ddpo is given twice"),
    (["score", "--reward", "aestetic", "--suite", "mini", "x.png"], "did you mean 'aesthetic'"),
]


def probe(*lines: list[str]) -> list[tuple[int, str, list[str]]]:
    """Status, output and heavy imports after each line."""
    command = [sys.executable, "-c", PROBE, json.dumps(lines), json.dumps(HEAVY)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_what_is_refused_is_refused_before_torch_is_imported() -> None:
    for (line, expected), (status, said, heavy) in zip(REFUSALS, probe(*(line for line, _ in REFUSALS)), strict=True):
        assert status == 2 and expected in said and said.count("\n") == 1, (line, said)
        assert heavy == [], line


def test_a_folder_of_another_configuration_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """Copies of committed records, so the difference is what is asked for here, and a run that is not refused stays here."""
    for name in ("ddpo/seed0", "ddpo/seed1", "tdpo/seed0", "tdpo/seed1"):
        below = Path("mini", "imagereward", name)
        shutil.copytree(ROOT / "results" / "reference" / below, tmp_path / below)
    record = ["run", "--out", str(tmp_path), "--algo", "tdpo", "--proxy", "imagereward", "--seed", "1"]
    sweep = ["sweep", "--out", str(tmp_path), "--algo", "tdpo,ddpo", "--proxy", "imagereward", "--seeds", "0-1"]
    one, many = probe(*([*line, "--suite", "mini", "--budget", "77"] for line in (record, sweep)))
    for (status, said, heavy), folders in ((one, 1), (many, 4)):
        assert status == 2 and "was made by another configuration" in said and "77 asked" in said, said
        assert said.count("/seed") == folders and heavy == []


def test_help_waits_for_nothing_heavy() -> None:
    commands = [function.__name__ for function in cli.COMMANDS]
    for name, (status, said, heavy) in zip(commands, probe(*([name, "--help"] for name in commands)), strict=True):
        assert status == 0 and f"Usage: overopt-bench {name}" in said and heavy == []


def test_list_waits_for_nothing_heavy_and_doctor_for_torch() -> None:
    listed, rewards_listed, diagnosed = probe(
        ["list"], ["list", "rewards"], ["doctor", "--suite", "mini", "--device", "cpu"]
    )
    assert "uwo:A+B" in listed[1] and "tdpo_r" in listed[1] and rewards_listed[1].strip() in listed[1]
    assert listed[0] == rewards_listed[0] == 0 and listed[2] == rewards_listed[2] == []
    assert "does not import" not in listed[1]
    status, said, heavy = diagnosed
    assert status == 0 and "device    cpu" in said
    assert {*heavy} <= {"numpy", "PIL", "torch"}


def test_entry_points_promise_what_is_registered() -> None:
    for one in (algorithms, metrics, mitigations, rewards, suites):
        assert set(one.classes()) == one.known() and one.broken == {}


def test_an_entry_point_of_another_name_is_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    group = "overopt_bench.algorithms"
    points = [
        announced.EntryPoint("dppo", "overopt_bench.algorithms.ddpo:DDPO", group),
        announced.EntryPoint("grpo", "overopt_bench.algorithms.grpo:GRPO", group),
    ]
    monkeypatch.setattr(announced, "entry_points", lambda group: points)
    fresh: Registry[Algorithm] = Registry("algorithm", "Algorithm")
    with pytest.raises(UserError, match="'dppo' does not import: UserError: it is announced as dppo, its name is ddpo"):
        fresh.get("dppo")
    assert fresh.get("grpo").name == "grpo"


def test_a_class_is_imported_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        announced.EntryPoint("absent", "no_such_module_anywhere:Absent", "overopt_bench.algorithms"),
        announced.EntryPoint("ddpo", "overopt_bench.algorithms.ddpo:DDPO", "overopt_bench.algorithms"),
    ]
    monkeypatch.setattr(announced, "entry_points", lambda group: points)
    fresh: Registry[Algorithm] = Registry("algorithm", "Algorithm")
    assert fresh.get("ddpo").name == "ddpo" and fresh.known() == {(None, "absent"), (None, "ddpo")}
    assert fresh.broken == {}  # nobody asked
    with pytest.raises(UserError, match="'absent' does not import: ModuleNotFoundError"):
        fresh.get("absent")
    assert fresh.names() == ["ddpo"]
