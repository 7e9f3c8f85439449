"""Parameters of derived rewards: what a name means, what it is called in record, folder and report, what is refused."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overopt_bench import cli
from overopt_bench.commands.list import describe
from overopt_bench.config import resolve
from overopt_bench.errors import UserError
from overopt_bench.plugins import load_plugin
from overopt_bench.registry import get_reward, get_suite, rewards
from overopt_bench.types import Reward

GIVEN = {"algo": "ddpo", "proxy": "uwo:aesthetic+pickscore", "suite": "mini"}


class Channel(Reward):
    """The value of one colour of the first pixel."""

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images[:, self.k, 0, 0]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("uwo:aesthetic+pickscore", "uwo:aesthetic+pickscore"),
        ("uwo@lambda=0.5:aesthetic+pickscore", "uwo:aesthetic+pickscore"),
        ("uwo@lambda=5e-1:aesthetic+pickscore", "uwo:aesthetic+pickscore"),
        ("uwo@lambda=0.1:aesthetic+pickscore", "uwo@lambda=0.1:aesthetic+pickscore"),
        ("uwo@lambda=.10: aesthetic + pickscore", "uwo@lambda=0.1:aesthetic+pickscore"),
        ("uwo@lambda=2.0:aesthetic+pickscore", "uwo@lambda=2:aesthetic+pickscore"),
        ("uwo@lambda=0:pickscore+aesthetic", "uwo@lambda=0:pickscore+aesthetic"),
    ],
)
def test_equal_rewards_have_equal_names(asked: str, name: str) -> None:
    """The default is left out and a number has one spelling, so that a run is not made twice; the name gives itself."""
    assert rewards.get(asked, "mini").name == name == rewards.get(name, "mini").name
    config = resolve({**GIVEN, "proxy": asked, "gold": [asked, "human"]})
    assert config.proxy == name and config.gold == (name, "human")
    assert config.config_hash() == resolve({**GIVEN, "proxy": name, "gold": [name, "human"]}).config_hash()
    assert config.folder(Path("out")) == Path("out/mini", name.replace(":", "-"), "ddpo/seed0")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # of (4, 2), (2, 4), (1, 8): standardised (2, -1), (0, 0), (-1, 2); mean 0.5, 0, 0.5; variance 2.25, 0, 2.25
        ("uwo@lambda=0:aesthetic+imagereward", [0.5, 0.0, 0.5]),
        ("uwo@lambda=0.1:aesthetic+imagereward", [0.275, 0.0, 0.275]),
        ("uwo:aesthetic+imagereward", [-0.625, 0.0, -0.625]),
        ("uwo@lambda=2:aesthetic+imagereward", [-4.0, 0.0, -4.0]),
    ],
)
def test_lambda_by_hand(name: str, expected: list[float]) -> None:
    """mean - lambda x population variance of the members, standardised on (1, 2), (2, 4), (3, 6)."""

    def images(*values: tuple[float, float]) -> Tensor:
        made = torch.zeros(len(values), 3, 1, 1)
        made[:, :2, 0, 0] = torch.tensor(values)
        return made

    cls: Any = rewards.get(name, "mini")
    reward = cls([Channel(0), Channel(1)])
    reward.calibrate(images((1, 2), (2, 4), (3, 6)), [""] * 3)
    assert reward(images((4, 2), (2, 4), (1, 8)), [""] * 3).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "uwo@lamda=0.1:aesthetic+pickscore",
            "there is no uwo parameter 'lamda'; did you mean 'lambda'? allowed: lambda",
        ),
        ("min@lambda=0.1:aesthetic+pickscore", "there is no min parameter 'lambda'; allowed: none"),
        ("uwo@lambda=-1:aesthetic+pickscore", "uwo lambda='-1': should be greater than or equal to 0"),
        ("uwo@lambda=inf:aesthetic+pickscore", "uwo lambda='inf': should be a finite number"),
        ("uwo@lambda=nan:aesthetic+pickscore", "uwo lambda='nan': should be"),
        ("uwo@lambda=much:aesthetic+pickscore", "uwo lambda='much': should be a valid number"),
        ("uwo@lambda=:aesthetic+pickscore", "uwo lambda='': should be a valid number"),
        ("uwo@lambda:aesthetic+pickscore", "uwo@lambda: write name=value, such as uwo@lambda=0.5:aesthetic+pickscore"),
        ("min@:aesthetic+pickscore", "min@: min has no parameters"),
        ("uwo@lambda=1@lambda=2:aesthetic+pickscore", "lambda is given twice"),
        ("uow@lambda=1:aesthetic+pickscore", "there is no reward of the kind 'uow'; did you mean 'uwo'?"),
        ("uwo@lambda=1:aesthetic", "needs two or more different rewards"),
    ],
)
def test_a_wrong_parameter_says_what_is_allowed(
    name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        rewards.get(name, "mini")
    command = ["run", "--algo", "ddpo", "--suite", "mini", "--proxy", name, "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_list_shows_parameters_with_their_defaults() -> None:
    lines = describe("rewards").splitlines()
    (at,) = (k for k, line in enumerate(lines) if line.startswith("  uwo:A+B+..."))
    assert re.match(r"      lambda=0.5 +weight of the variance .*; as in uwo@lambda=0.5:A\+B$", lines[at + 1])
    (other,) = (k for k, line in enumerate(lines) if line.startswith("  min:A+B+..."))
    assert lines[other + 1].startswith("  uwo:")  # min has none


@pytest.mark.slow
def test_a_run_is_recorded_and_drawn_under_the_whole_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lambdas are two proxies: two folders, two calibrations, two groups of rows in the report."""
    names = [f"uwo{lam}:aesthetic+pickscore" for lam in ("", "@lambda=2")]
    for name in names:
        command = [
            "run", "--algo", "best_of_n", "--proxy", name, "--suite", "mini", "--device", "cpu", "--num-steps", "2",
            "--budget", "16", "--eval-points", "2", "--eval-images", "4", "--out", str(tmp_path / "results"),
        ]  # fmt: skip
        assert cli.main(command) == 0
    for name, folder in zip(names, ("uwo-aesthetic+pickscore", "uwo@lambda=2-aesthetic+pickscore"), strict=True):
        run = tmp_path / "results/mini" / folder / "best_of_n/seed0"
        assert json.loads((run / "config.json").read_text())["config"]["proxy"] == name
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [row["reward"] for row in rows if row["event"] == "calibration"] == [name]
        assert all(f"train/{name}/mean" in row for row in rows if row["event"] == "eval")
    assert cli.main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "report")]) == 0
    capsys.readouterr()
    tables = [list(csv.DictReader(io.StringIO(path.read_text()))) for path in (tmp_path / "report").rglob("*.csv")]
    assert any({row["proxy"] for row in table} == set(names) for table in tables if table and "proxy" in table[0])
    assert "uwo@lambda=2:aesthetic+pickscore" in next((tmp_path / "report").rglob("*.html")).read_text()


MEDIAN = '''
from pydantic import Field
from overopt_bench.registry import register_derived_reward
from overopt_bench.rewards.ensemble import Ensemble
from overopt_bench.types import RewardParams

class QuantileParams(RewardParams):
    q: float = Field(0.5, ge=0, le=1, description="which quantile")

@register_derived_reward
class Quantile(Ensemble):
    """A quantile of the members' scores."""
    kind, Params = "quantile", QuantileParams

    def combine(self, scores):
        return scores.quantile(self.params.q, dim=0)
'''


def test_a_kind_from_outside(tmp_path: Path, clean_registry: None) -> None:
    """One file is enough: its parameters are checked, shown and part of the name like uwo's; q=0 is the minimum."""
    (tmp_path / "quantile.py").write_text(MEDIAN)
    assert load_plugin(tmp_path / "quantile.py").names == ("reward quantile:",)
    suite, images = get_suite("mini"), torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompts = list(suite.prompts["train"][:4])
    lowest, reference = (get_reward(name, suite) for name in (f"quantile@q=0:{PAIR}", f"min:{PAIR}"))
    assert lowest.name == f"quantile@q=0:{PAIR}"
    for reward in (lowest, reference):
        reward.calibrate(images, prompts)
    torch.testing.assert_close(lowest(images, prompts), reference(images, prompts))
    with pytest.raises(UserError, match="quantile q='2': should be less than or equal to 1"):
        rewards.get(f"quantile@q=2:{PAIR}", "mini")
    assert "q=0.5" in describe("rewards")


PAIR = "aesthetic+pickscore"
