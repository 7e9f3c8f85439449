"""The command line: exit statuses, one line for what is wrong, nothing written before all is checked."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_train import RUN, SWEEP, FakeTrain

from overopt_bench import api, cli
from overopt_bench.commands import settings as prepare
from overopt_bench.errors import RunError, UserError


def test_run_passes_on_what_was_asked(train: FakeTrain, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--seed", "3", "--gold", "darkness", "--set", "lr=0.5", "--set", "clip=none", "--plugin", str(tiny)]
    assert cli.main([*RUN, *options, "--budget", "9", "--out", "here"]) == 0
    ((config, rest),) = train.calls
    assert (config.algo, config.proxy, config.seed, config.budget) == ("climb", "darkness", 3, 9)
    assert config.gold == ("darkness", "truth") and config.params["lr"] == 0.5 and config.params["clip"] is None
    assert rest["out"] == Path("here") and rest["runtime"].device == "cpu"
    assert [plugin.path for plugin in rest["plugins"]] == [tiny]
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == "suite tiny: as asked"
    assert err == "warning: the proxy 'darkness' is also a gold reward: this run cannot show its overoptimization\n"


def test_the_command_line_wins_over_the_file(train: FakeTrain, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("algo: climb\nproxy: truth\nsuite: tiny\nbudget: 7\nseed: 5\nparams: {lr: 0.5, epochs: 2}\n")
    assert cli.main(["run", "--config", str(file), "--proxy", "darkness", "--seed", "6", "--set", "lr=0.25"]) == 0
    config = train.calls[0][0]
    assert (config.proxy, config.seed, config.budget) == ("darkness", 6, 7)
    assert (config.params["lr"], config.params["epochs"]) == (0.25, 2)


BAD = {
    "no algorithm": (["run", "--proxy", "darkness", "--suite", "tiny"], "--algo is required"),
    "unknown algorithm": ([*RUN, "--algo", "clim"], "did you mean 'climb'?"),
    "unknown reward": ([*RUN, "--proxy", "darknes"], "did you mean 'darkness'?"),
    "unknown gold": ([*RUN, "--gold", "truht"], "did you mean 'truth'?"),
    "unknown suite": ([*RUN, "--suite", "tinny"], "did you mean 'tiny'?"),
    "unknown option": ([*RUN, "--budgt", "3"], "--budget"),
    "unknown command": (["rum"], "rum"),
    "wrong type": ([*RUN, "--seed", "x"], "--seed"),
    "wrong parameter": ([*RUN, "--set", "lr=banana"], "lr='banana': should be a valid number"),
    "unknown parameter": ([*RUN, "--set", "lrr=1"], "did you mean 'lr'?"),
    "malformed set": ([*RUN, "--set", "lr"], "write name=value"),
    "out of range": ([*RUN, "--budget", "-1"], "budget=-1: should be greater than 0"),
    "budget unit": ([*RUN, "--budget", "1", "--budget-unit", "days"], "'queries', 'nfe' or 'seconds'"),
    "no gradient": (
        [*RUN, "--algo", "slide", "--proxy", "jpeg_compressibility"],
        "differentiable in tiny: darkness, truth",
    ),
    "absent plugin": ([*RUN, "--plugin", "absent.py"], "no such Python file"),
    "absent file": ([*RUN, "--config", "absent.yaml"], "No such file"),
    "device": ([*RUN, "--device", "tpu"], "allowed are cpu, cuda and cuda:N"),
    "absent device": ([*RUN, "--device", "cuda:99"], "CUDA devices here"),
    "seeds": ([*SWEEP, "--seeds", "4-0"], "write 0-4 or 0,2,7"),
    "empty sweep": ([*SWEEP, "--proxy", ","], "--proxy needs at least one name"),
    "sweep owner": ([*SWEEP, "--set", "ddpo.lr=1"], "'ddpo' is not among the algorithms climb, slide"),
    "sweep without proxy": (["sweep", "--algo", "climb"], "--proxy"),
    "list": (["list", "algorithm"], "did you mean 'algorithms'?"),
    "eval": (["eval", "nowhere"], "nowhere is not a run folder"),
    "sample": (["sample", "nowhere", "--prompt", "cat"], "nowhere is not a run folder"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_status_2_with_one_line_and_nothing_written(
    train: FakeTrain, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert out == "" and train.calls == [] and list(tmp_path.iterdir()) == []


def test_a_plugin_reward_is_tried_before_anything_is_written(
    train: FakeTrain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from overopt_bench.registry import register_reward\nfrom overopt_bench.types import Reward\n"
        "@register_reward\nclass Mine(Reward):\n    name = 'mine'\n"
        "    def __call__(self, images, prompts):\n        return images.mean() * float('nan')\n"
    )
    assert cli.main([*RUN, "--plugin", "mine.py", "--gold", "mine"]) == 2
    assert "reward 'mine' must give a tensor of shape (2,)" in capsys.readouterr().err
    assert train.calls == [] and [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine.py"]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("two\nlines"), 2, "error: two lines\n"),
        (RunError("the loss is not finite"), 1, "error: the loss is not finite\n"),
        (ValueError("odd"), 1, "error: ValueError: odd (OVEROPT_BENCH_DEBUG=1 shows where)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_exit_statuses(
    train: FakeTrain, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, message: str
) -> None:
    train.error = error
    assert cli.main(RUN) == status
    assert capsys.readouterr().err == message


def test_debug_shows_the_traceback(train: FakeTrain, monkeypatch: pytest.MonkeyPatch) -> None:
    train.error = ValueError("odd")
    monkeypatch.setenv("OVEROPT_BENCH_DEBUG", "1")
    with pytest.raises(ValueError, match="odd"):
        cli.main(RUN)


def test_sweep_runs_the_grid_and_skips_what_is_complete(train: FakeTrain, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SWEEP, "--seeds", "1", "--set", "slide.lr=0.5"]) == 0
    assert [(c.algo, c.seed, c.params["lr"]) for c, _ in train.calls] == [("climb", 1, 1e-3), ("slide", 1, 0.5)]
    train.calls.clear()
    assert cli.main([*SWEEP, "--set", "slide.lr=0.5"]) == 0
    assert [(c.algo, c.seed) for c, _ in train.calls] == [("climb", 0), ("slide", 0)]
    assert "4 runs, 2 complete already" in capsys.readouterr().out


def test_sweep_refuses_folders_of_another_configuration_before_it_starts(
    train: FakeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    """All folders are named, each difference once, and the run that could have begun does not begin."""
    assert cli.main([*SWEEP, "--seeds", "1"]) == 0
    Path("results/tiny/darkness/climb/seed1/status.json").unlink()  # killed before it was written
    assert cli.main([*SWEEP, "--algo", "climb", "--seeds", "2", "--budget", "7"]) == 0
    train.calls.clear()
    capsys.readouterr()
    assert cli.main([*SWEEP, "--seeds", "0-2", "--budget", "5"]) == 2
    said = capsys.readouterr()
    assert train.calls == [] and said.out == "" and not Path("results/tiny/darkness/climb/seed0").exists()
    climb, slide = (Path("results/tiny/darkness", algo) for algo in ("climb", "slide"))
    assert said.err == (
        "error: nothing was started, for 3 of 6 runs have a folder that was made by another configuration:"
        f" {climb / 'seed1'}, {slide / 'seed1'} (budget: 64 there, 5 asked); {climb / 'seed2'} (budget: 7 there, 5 asked);"
        " use another --tag or --out\n"
    )


def test_sweep_goes_on_after_a_failure_and_says_so_at_the_end(
    train: FakeTrain, capsys: pytest.CaptureFixture[str]
) -> None:
    train.error = RunError("the loss is not finite")
    assert cli.main(SWEEP) == 1
    assert len(train.calls) == 4
    assert "4 of 4 runs failed" in capsys.readouterr().err


def test_the_default_suite_is_explained(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, expected in (
        (None, ("sd14", "it can run here")),
        ("no device", ("mini", "no device")),
    ):
        monkeypatch.setattr(
            prepare, "get_suite", lambda name, weights=None, m=missing: SimpleNamespace(missing=lambda: m)
        )
        assert prepare.choose_suite(None) == expected


def test_sd14_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "run",
        "--algo",
        "ddpo",
        "--proxy",
        "aesthetic",
        "--suite",
        "sd14",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "o"),
    ]
    assert cli.main([*words, "--weights", "/no/such"]) == 2
    assert "--weights /no/such: no such folder" in capsys.readouterr().err
    assert cli.main([*words, "--weights", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "hf download openai/clip-vit-large-patch14 config.json model.safetensors" in error and error.count("\n") == 1
    assert "--revision 32bd64288804d66eefd0ccbe215aa642df71cc41" in error and not (tmp_path / "o").exists()


def test_every_command_is_a_function_with_the_same_arguments(train: FakeTrain) -> None:
    names = [command.__name__ for command in cli.COMMANDS]
    assert names == [
        "run",
        "report",
        "compare",
        "list",
        "sweep",
        "eval",
        "sample",
        "score",
        "ceiling",
        "bench",
        "doctor",
    ]
    folder = api.run(algo="climb", proxy="darkness", suite="tiny", seed=2, out=Path("o"))
    assert folder == Path("o/tiny/darkness/climb/seed2")
    assert all("device" in inspect.signature(f).parameters for f in (api.run, api.sweep, api.sample, api.bench))


@pytest.mark.parametrize("command", [command.__name__ for command in cli.COMMANDS])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"overopt-bench {command}" in capsys.readouterr().out


def test_help_does_not_import_torch() -> None:
    code = "import sys, overopt_bench.cli as c; c.main(['run', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and "--budget-unit" in done.stdout, done.stderr


def test_the_module_can_be_run() -> None:
    done = subprocess.run([sys.executable, "-m", "overopt_bench", "rum"], check=False, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_sweep_of_several_processes_ends_together(
    train: FakeTrain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that failed alone must not begin the next run while the others are still in this one; one speaks."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    train.error = RunError("died")
    assert cli.main(SWEEP) == 1
    assert len(train.calls) == 1 and capsys.readouterr().out == ""
