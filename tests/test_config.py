"""Configurations: where defaults come from, what is refused and how, what the hash covers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import (
    RunConfig,
    parse_set,
    read_config_file,
    resolve,
    resolve_params,
    warnings,
)
from overopt_bench.errors import UserError
from overopt_bench.plugins import Plugin
from overopt_bench.recording.provenance import resume_command

pytestmark = pytest.mark.usefixtures("tiny")
OLD_RECORDS = Path(__file__).parent / "old_records"
GIVEN: dict[str, Any] = {"algo": "climb", "proxy": "darkness", "suite": "tiny"}


def test_defaults_come_from_suite_and_algorithm() -> None:
    config = resolve(GIVEN)
    assert (config.budget, config.num_steps, config.eval_points, config.seed) == (64, 4, 3, 0)
    assert config.gold == ("truth",)
    assert config.params == {"lr": 1e-3, "epochs": 7, "clip": 1.0, "kind": "a"}


def test_a_suites_settings_hold_there_only_and_the_user_wins() -> None:
    assert resolve_params("climb", "tiny", {})["epochs"] == 7
    assert resolve_params("climb", "mini", {})["epochs"] == resolve_params("slide", "tiny", {})["epochs"] == 1
    assert resolve_params("climb", "tiny", {"epochs": 3})["epochs"] == 3


@pytest.mark.parametrize("name", ["micro_batch", "checkpoint"])
def test_what_only_takes_memory_is_an_option_and_no_parameter(name: str) -> None:
    with pytest.raises(
        UserError, match=f"{name} is no parameter of climb.* use the option --{name.replace('_', '-')}$"
    ):
        resolve({**GIVEN, "params": {name: 1}})


def test_records_from_when_it_was_one_keep_their_hash_and_can_be_run_again() -> None:
    """Configurations of November 2026, whose parameters hold what is an option of the machine today."""
    names: set[str] = set()
    for file in sorted(OLD_RECORDS.glob("*.json")):
        record = json.loads(file.read_text())
        names |= record["config"]["params"].keys()
        assert RunConfig(**record["config"]).config_hash() == record["config_hash"]
        again = resolve(read_config_file(file))
        assert not again.params.keys() & {"micro_batch", "checkpoint"}
        # an algorithm may have more parameters today, which the record does not name and its hash does not cover
        known = {k: v for k, v in again.params.items() if k in record["config"]["params"]}
        assert again.model_copy(update={"params": known}).config_hash() == record["config_hash"]
    assert names >= {"micro_batch", "checkpoint"}


def test_the_suites_gold_is_always_recorded_once() -> None:
    assert resolve({**GIVEN, "gold": ["darkness", "truth"]}).gold == ("darkness", "truth")
    assert resolve({**GIVEN, "gold": "darkness"}).gold == ("darkness", "truth")


def test_a_proxy_that_is_also_gold_is_allowed_with_a_warning() -> None:
    assert warnings(resolve(GIVEN)) == []
    (line,) = warnings(resolve({**GIVEN, "proxy": "truth"}))
    assert "'truth' is also a gold reward" in line


def test_hash_covers_all() -> None:
    base = resolve(GIVEN)
    assert base.config_hash() == resolve(json.loads(base.model_dump_json())).config_hash()
    others = [
        {"params": {"lr": 0.5}},
        {"seed": 1},
        {"budget": 65},
        {"eval_seed": 1},
        {"gold": ["darkness"]},
        {"tag": "b"},
    ]
    hashes = {resolve({**GIVEN, **other}).config_hash() for other in others}
    assert len(hashes | {base.config_hash()}) == len(others) + 1


def test_folder() -> None:
    assert resolve({**GIVEN, "seed": 3, "tag": "x"}).folder(Path("r")) == Path("r/tiny/darkness/climb/seed3-x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algo": "clim"}, r"no algorithm 'clim'; did you mean 'climb'\?"),
        ({"proxy": "darknes"}, r"no reward 'darknes'; did you mean 'darkness'\?"),
        ({"suite": "tony"}, r"no suite 'tony'; did you mean 'tiny'\?"),
        ({"gold": ["trut"]}, r"no reward 'trut'; did you mean 'truth'\?"),
        ({"algo": None}, "--algo is required"),
        ({"algo": 5}, "--algo must be a name, not 5"),
        ({"gold": 5}, "--gold must be names of rewards, not 5"),
        ({"params": [1]}, "params must be a mapping"),
        ({"train_prompts": "cat"}, "train_prompts: must be a list of prompts, not 'cat'"),
        ({"train_prompts": ["cat", " "]}, "train_prompts: prompt 2 is empty"),
        ({"train_prompts": ["cat", True]}, "train_prompts: prompt 2 is True"),
        ({"budgett": 5}, r"no option 'budgett'; did you mean 'budget'\?"),
        ({"budget": -1}, "budget=-1: should be greater than 0"),
        ({"seed": -1}, "seed=-1: should be greater than or equal to 0"),
        ({"seed": "x"}, "seed='x': should be a valid integer"),
        ({"eta": 0}, "eta=0: should be greater than 0"),
        ({"eval_points": 1}, "eval_points=1: should be greater than or equal to 2"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"budget_unit": "hours", "budget": 5}, "budget_unit='hours': should be 'queries', 'nfe' or 'seconds'"),
        ({"budget_unit": "seconds"}, "--budget-unit seconds needs --budget"),
        ({"tag": "../up"}, "tag='../up'"),
        ({"params": {"lr": "banana"}}, "climb lr='banana': should be a valid number"),
        ({"params": {"lr": 0}}, "climb lr=0: should be greater than 0"),
        ({"params": {"lrr": 1}}, r"no climb parameter 'lrr'; did you mean 'lr'\? allowed: .*epochs"),
        ({"params": {"kind": "c"}}, "climb kind='c': should be 'a' or 'b'"),
        ({"algo": "slide", "proxy": "jpeg_compressibility"}, "needs a differentiable proxy.*in tiny: darkness, truth"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve({**GIVEN, **change})
    assert "\n" not in str(caught.value)


def test_set_pairs_become_values() -> None:
    values = parse_set(["lr=1e-4", "flag=true", "kind=b", "clip=none", "empty="])
    assert values == {"lr": 1e-4, "flag": True, "kind": "b", "clip": "none", "empty": ""}
    assert resolve_params("climb", "tiny", {"clip": "none"})["clip"] is None


@pytest.mark.parametrize(
    ("pairs", "message"), [(["lr"], "write name=value"), (["=1"], "write"), (["a=1", "a=2"], "twice")]
)
def test_malformed_set_pairs(pairs: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_set(pairs)


def test_config_files_in_yaml_toml_and_of_a_run_agree(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("algo: climb\nproxy: darkness\nsuite: tiny\nparams: {lr: 0.5}\n")
    (tmp_path / "a.toml").write_text('algo = "climb"\nproxy = "darkness"\nsuite = "tiny"\n[params]\nlr = 0.5\n')
    config = resolve(read_config_file(tmp_path / "a.yaml"))
    assert config == resolve(read_config_file(tmp_path / "a.toml")) and config.params["lr"] == 0.5
    (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "config": config.model_dump(mode="json")}))
    assert resolve(read_config_file(tmp_path / "config.json")) == config


@pytest.mark.parametrize("name", ["config.json", "a.yaml"])
def test_what_a_run_recorded_is_read_as_it_was(name: str, tmp_path: Path) -> None:
    """JSON writes an emoji as two escapes, each of which YAML takes for a character."""
    config = resolve({**GIVEN, "train_prompts": ["🦊", "狐", "e\u0301"], "params": {"lr": 1e-5}})
    assert config.train_prompts == ("🦊", "狐", "é")
    (tmp_path / name).write_text(json.dumps({"schema": 1, "config": config.model_dump(mode="json")}))
    assert resolve(read_config_file(tmp_path / name)) == config


def test_config_files_of_editors_that_write_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("\ufeffalgo: climb\r\ntrain_prompts: [🦊]\r\n", encoding="utf-8")
    assert read_config_file(tmp_path / "a.yaml") == {"algo": "climb", "train_prompts": ["🦊"]}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"algo": "climb",}', "a.json: not JSON: "),
        ("a.yaml", "algoo: climb", r"'algoo'; did you mean 'algo'\?"),
        ("a.yaml", "- a", "must be a mapping"),
        ("a.yaml", "a: [", "a.yaml"),
        ("a.toml", "a = ", "a.toml"),
        ("a.yaml", None, "No such file"),
    ],
)
def test_bad_config_files(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_config_file(tmp_path / name)


def test_the_resume_command_holds_what_the_record_does_not() -> None:
    runtime = Runtime(device="cpu", weights=Path("/w"), micro_batch=4, compile=True)
    plugin = Plugin(Path("/p/tiny.py"), "", ())
    assert resume_command(resolve(GIVEN), Path("my results"), runtime, [plugin]) == (
        "overopt-bench run --config 'my results/tiny/darkness/climb/seed0/config.json' --out 'my results'"
        " --device cpu --weights /w --micro-batch 4 --compile --plugin /p/tiny.py"
    )


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        resolve(GIVEN).seed = 5
    with pytest.raises(ValueError, match="Extra inputs"):
        RunConfig(**{**resolve(GIVEN).model_dump(), "other": 1})
