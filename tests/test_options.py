"""An option is declared once: every field of the models is an argument of the commands, typed, and reaches its place."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_train import RUN, SWEEP, FakeTrain
from pydantic import BaseModel
from typer.testing import CliRunner

from overopt_bench import api, cli
from overopt_bench.commands.command import Arguments, command
from overopt_bench.commands.requests import RunRequest, SweepRequest, Working
from overopt_bench.commands.settings import make_runtime, read_options
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, resolve
from overopt_bench.errors import UserError
from overopt_bench.options import Names, RunSettings, arguments, choices, option

ROOT = Path(__file__).parent.parent
OTHER_NAMES = {"params": "set", "train_prompts": "prompts"}  # options whose text is read into a field
HELD = {**RunConfig.model_fields, **Runtime.model_fields}


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main([name, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_every_field_of_the_configuration_and_of_runtime_is_an_option(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {OTHER_NAMES.get(field, field) for field in HELD}
    if name == "sweep":
        names = {"seeds" if field == "seed" else field for field in names}
    assert names <= inspect.signature(getattr(api, name)).parameters.keys()
    shown = set(help_of(name, capsys).replace("/", " ").split())
    assert {"--" + field.replace("_", "-") for field in names} <= shown


def test_bench_takes_the_settings_and_the_machine_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    names = {*RunSettings.model_fields, *Runtime.model_fields, "set", "preset", "config", "plugin"}
    assert names <= inspect.signature(api.bench).parameters.keys()
    shown = help_of("bench", capsys).split()
    assert {"--" + field.replace("_", "-") for field in names} <= set(shown)


def other_values() -> Iterator[tuple[str, Any]]:
    """A value for each field of a configuration and of ``Runtime`` that is not what holds without it."""
    special = {"gold": ("darkness", "truth"), "params": {"lr": 0.5}, "train_prompts": ("fish", "bird"), "eta": 0.5}
    # a mitigation is refused by an algorithm that has no place for it, as all of this suite's; see test_mitigation.py
    skip = {"algo", "proxy", "suite", "seed", "model", "train_split", "device", "weights", "mitigation"}
    for name, field in HELD.items():
        if name in special:
            yield name, special[name]
        elif allowed := choices(field):
            yield name, allowed[-1]
        elif name not in skip:
            yield (
                name,
                {"bool": True, "bool | None": True, "str": "x"}.get(str(inspect.formatannotation(field.annotation)), 7),
            )


@pytest.mark.parametrize("start", [RUN, SWEEP], ids=["run", "sweep"])
@pytest.mark.parametrize(("name", "value"), [*other_values()], ids=[name for name, _ in other_values()])
def test_every_option_reaches_its_place(
    start: list[str], name: str, value: Any, train: FakeTrain, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("fish\nbird\n")
    given = {"params": ["--set", "lr=0.5"], "train_prompts": ["--prompts", "mine.txt"]}.get(name)
    flag = "--" + name.replace("_", "-")
    several = value if isinstance(value, tuple) else (value,)
    words = given or ([flag] if value is True else [part for one in several for part in (flag, str(one))])
    assert cli.main([*start, *words, *(["--budget", "9"] if name == "budget_unit" else [])]) == 0
    config, rest = train.calls[-1]
    found = getattr(rest["runtime"] if name in Runtime.model_fields else config, name)
    assert (found["lr"] == 0.5) if name == "params" else (found == value)


class Wider(RunRequest):
    warmth: Names = option("How warm it is; may be repeated.", (), metavar="PLACE")
    fan: bool | None = option("Turn the fan on, or off.", None, source="by the weather")
    depth: int = option("How deep.", source="the sea's", ge=1)


def test_a_field_more_is_an_option_more() -> None:
    """With its name, what may be repeated, a switch of three states, and what says its default."""
    seen: list[dict[str, Any]] = []

    @command(Wider)
    def dive(given: Arguments) -> None:
        """Dive."""
        seen.append(given.of(Wider))

    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command()(cli.typed(dive))
    run = CliRunner().invoke
    assert run(app, ["--warmth", "a", "--warmth", "b", "--no-fan", "--depth", "3"]).exit_code == 0
    dive(warmth=["a", "b"], fan=False, depth=3, algo="climb")
    assert seen[1].pop("algo") == "climb" and seen[0] == seen[1] == {"warmth": ["a", "b"], "fan": False, "depth": 3}
    text = " ".join(run(app, ["--help"]).output.split())
    assert "--warmth PLACE How warm it is; may be repeated." in text and "How deep. [the sea's]" in text
    assert "depth: How deep. [the sea's]" in str(dive.__doc__)
    with pytest.raises(TypeError, match="dept"):
        dive(dept=3)


class WiderConfig(RunConfig):
    warmth: Names = option("How warm it is.", (), later=True)


def test_a_later_field_counts_in_the_hash_where_it_is_used(tiny: Path) -> None:
    config = resolve({"algo": "climb", "proxy": "darkness", "suite": "tiny"})
    plain, used = WiderConfig(**config.model_dump()), WiderConfig(**config.model_dump(), warmth="sun")
    assert used.warmth == ("sun",)
    assert plain.config_hash() == config.config_hash() != used.config_hash()


@pytest.mark.slow
def test_hashes_of_the_repositorys_own_records_stay() -> None:
    records = [json.loads(file.read_text()) for file in sorted((ROOT / "results").rglob("config.json"))]
    assert len(records) > 100
    for record in records:
        assert RunConfig(**record["config"]).config_hash() == record["config_hash"]


@pytest.mark.slow
def test_a_type_checker_knows_the_arguments(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    file = tmp_path / "mine.py"
    file.write_text(
        "from pathlib import Path\nfrom overopt_bench import api\n"
        "good: Path = api.run(algo='ddpo', proxy='aesthetic', eval_images=3, gold=['human'], micro_batch=None)\n"
        "api.eval(good, ['owl'], ['human'], count=2)\n"
        "api.run(eval_image=3)\n"
        "api.run(eval_images='3')\n"
        "api.sweep(algo='ddpo', proxy='aesthetic', precision='float8')\n"
        "api.sweep(algo='ddpo', executor='pbs')\n"
        "bad: int = api.run()\n"
    )
    command = [sys.executable, "-m", "mypy", "--hide-error-context", str(file)]  # with the cache of `mypy`
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    lines = [int(line.split(":")[1]) for line in out.splitlines() if ": error: " in line]
    assert lines == [5, 6, 7, 8, 9], out


def test_arguments_of_the_command_line_say_what_a_model_holds(train: FakeTrain) -> None:
    runtime = Runtime(device="cpu", micro_batch=3, compile=True, attention="eager")
    assert list(arguments(runtime)) == [
        "--device", "cpu", "--micro-batch", "3", "--compile", "--attention", "eager",
    ]  # fmt: skip
    assert cli.main([*RUN[:-2], *arguments(runtime)]) == 0
    assert train.calls[0][1]["runtime"] == runtime


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"micro_batch": 0}, "micro_batch=0: should be greater than or equal to 1"),
        ({"attention": "flash"}, "attention='flash': should be 'sdpa', 'eager' or 'xformers'"),
        ({"device": "tpu"}, "allowed are cpu, cuda and cuda:N"),
        ({"device": 5}, "device=5: should be a valid string"),
    ],
)
def test_knobs_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_runtime(values)


def test_speed_comes_from_the_command_line_then_the_file_then_the_preset(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    presets = {"micro_batch": 16, "attention": "eager", "algorithms": {"slide": {"micro_batch": 4, "lr": 0.5}}}
    monkeypatch.setattr("overopt_bench.commands.settings.read_presets", lambda asked: json.loads(json.dumps(presets)))

    def read(**given: Any) -> tuple[Any, ...]:
        options = read_options(Arguments({"suite": "tiny", "device": "cpu", **given}))
        climb, slide = options.runtime_for("climb"), options.runtime_for("slide")
        assert climb.attention == slide.attention == "eager" and climb.device == "cpu"
        return climb.micro_batch, slide.micro_batch, options.config("slide", "darkness", 0).params["lr"]

    file = tmp_path / "mine.yaml"
    file.write_text("micro_batch: 8\nparams: {lr: 0.25}\n")
    assert read() == (16, 4, 0.5)
    assert read(config=file) == (8, 8, 0.25)
    (tmp_path / "none.yaml").write_text("micro_batch: null\n")
    assert read(config=tmp_path / "none.yaml") == (16, 4, 0.5)
    assert read(config=file, micro_batch=2, set=["lr=0.125"]) == (2, 2, 0.125)


def test_requests_differ_in_nothing_but_what_a_sweep_multiplies() -> None:
    def own(request: type[BaseModel], *without: str) -> dict[str, str]:
        return {k: repr(v) for k, v in request.model_fields.items() if k not in without}

    assert own(RunRequest, "algo", "proxy", "seed") == own(
        SweepRequest, "algo", "proxy", "seeds", *Working.model_fields
    )
