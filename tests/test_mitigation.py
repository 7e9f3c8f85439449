"""The seam for mitigations: how they are written, refused, recorded, stopped by and resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_runs import write_run
from toy_policy import ToyPolicy

from overopt_bench import cli
from overopt_bench.config import read_config_file, resolve
from overopt_bench.errors import RunError, UserError
from overopt_bench.registry import register_mitigation
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.training import loop
from overopt_bench.types import Hook, LossRows, Mitigation, MitigationParams, Mitigations, Trajectory
from overopt_bench.types.mitigation import parse_mitigation, write_mitigation

GIVEN = {"algo": "ddpo", "proxy": "aesthetic", "suite": "mini"}
SMALL: dict[str, Any] = {**GIVEN, "budget": 96, "eval_points": 2, "eval_images": 4, "num_steps": 2}
EPOCH = {"samples_per_epoch": 32, "images_per_prompt": 4}


def run(out: Path, *mitigation: str, **changes: Any) -> Path:
    params = EPOCH if changes.get("algo", "ddpo") != "alignprop" else {}
    return loop.run(resolve({**SMALL, "params": params, "mitigation": mitigation, **changes}), out=out)


def rows(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The record without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in lines if not kinds or row["event"] in kinds]


class Wide(MitigationParams):
    size: int = 3
    name: str = "a"
    parts: tuple[float, ...] = (0.5, 1.0)


def test_a_mitigation_is_one_text_and_reads_back() -> None:
    assert parse_mitigation("kl:beta=1e-2,where=loss") == ("kl", {"beta": 0.01, "where": "loss"})
    assert parse_mitigation(" gate ") == ("gate", {})
    assert parse_mitigation("wide: parts=[1,2], name = x,y ") == ("wide", {"parts": [1, 2], "name": "x,y"})
    text = write_mitigation("wide", Wide(parts=(1, 2)))
    assert text == "wide:size=3,name=a,parts=[1.0, 2.0]"
    assert Wide(**parse_mitigation(text)[1]) == Wide(parts=(1, 2))
    assert write_mitigation("gate", MitigationParams()) == "gate"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mitigation": "lk:beta=1"}, r"there is no mitigation 'lk'; did you mean 'kl'\? allowed: kl"),
        ({"mitigation": ["kl"]}, "--mitigation kl beta is required"),
        ({"mitigation": ["kl:betta=1"]}, r"no --mitigation kl parameter 'betta'; did you mean 'beta'\?"),
        ({"mitigation": ["kl:beta=-1"]}, "kl beta=-1: should be greater than or equal to 0"),
        ({"mitigation": ["kl:beta=NaN"]}, "kl beta=nan: should be a finite number"),
        ({"mitigation": ["kl:beta=1,where=here"]}, "kl where='here': should be 'loss', 'reward' or 'both'"),
        ({"mitigation": ["kl:0.1"]}, "write name:parameter=value, for example --mitigation kl:beta=0.01"),
        ({"mitigation": ["kl:beta=1,beta=2"]}, "beta is given twice"),
        ({"mitigation": ["kl:beta=1", "kl:beta=2,where=reward"]}, "--mitigation kl is given twice"),
        ({"mitigation": 5}, "--mitigation must be texts such as kl:beta=0.01, not 5"),
        ({"mitigation": ["kl:beta=1"], "algo": "base"}, "'base' cannot be run with the mitigation 'kl:beta=1.0,where=loss',"
         " which acts on loss; it offers no such place"),
        ({"mitigation": ["kl:beta=1,where=both"], "algo": "alignprop"}, "which acts on advantages; it offers loss, reward, stop"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        resolve({**GIVEN, **change})
    assert "\n" not in str(caught.value)


def test_a_mitigation_is_part_of_the_configuration_and_of_the_folder(tmp_path: Path) -> None:
    plain, none = resolve(GIVEN), resolve({**GIVEN, "mitigation": []})
    short, long = (resolve({**GIVEN, "mitigation": [text]}) for text in ("kl:beta=1e-2", "kl:where=loss,beta=0.010"))
    other = resolve({**GIVEN, "mitigation": "kl:beta=0.01,where=reward"})
    assert plain.config_hash() == none.config_hash() and short == long and short.config_hash() == long.config_hash()
    assert len({config.config_hash() for config in (plain, short, other)}) == 3
    assert plain.folder(tmp_path) == tmp_path / "mini/aesthetic/ddpo/seed0"
    assert other.folder(tmp_path) == tmp_path / "mini/aesthetic/ddpo+kl-beta=0.01,where=reward/seed0"
    (tmp_path / "a.yaml").write_text("algo: ddpo\nproxy: aesthetic\nsuite: mini\nmitigation: [kl:beta=0.01]\n")
    (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "config": short.model_dump(mode="json")}))
    assert (
        resolve(read_config_file(tmp_path / "a.yaml")) == short == resolve(read_config_file(tmp_path / "config.json"))
    )


def test_runs_that_differ_by_mitigation_are_never_pooled(tmp_path: Path) -> None:
    """They stand beside each other in one figure, each under its own label."""
    for k, mitigation in enumerate(([], ["kl:beta=0.01,where=loss"], ["kl:beta=0.1,where=loss"])):
        for seed in (0, 1):
            write_run(tmp_path, seed=seed, folder=tmp_path / f"{k}-{seed}", mitigation=mitigation)
    write_run(tmp_path, seed=2)  # a record from before there were mitigations
    (group,) = group_runs(find_runs([tmp_path]))
    assert group.labels("aesthetic") == ["ddpo", "ddpo + kl:beta=0.01,where=loss", "ddpo + kl:beta=0.1,where=loss"]
    assert [len(group.of("aesthetic", label)) for label in group.labels("aesthetic")] == [3, 2, 2]


def test_list_shows_mitigations_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "mitigations"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mitigations" and lines[1].split()[:3] == ["kl", "the", "exact"]
    assert lines[2].split()[0] == "beta" and lines[2].endswith("(required)") and "where='loss'" in lines[3]


class Half(Mitigation):
    """Halve what is learned from, and count."""

    name = "half"
    summary = "half the reward, a tenth of the advantages and no end before three rounds"

    def __init__(self, policy: Any, params: Any) -> None:
        super().__init__(policy, params)
        self.rounds = 0

    def reward(self, rewards: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
        return rewards / 2

    def stop(self, metrics: Mapping[str, float]) -> str | None:
        self.rounds += 1
        return "three rounds are enough" if self.rounds == 3 else None

    def state_dict(self) -> dict[str, Any]:
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rounds = state["rounds"]


class Minus(Mitigation):
    """A penalty of 1 a row, and 1 less in the reward and the advantages."""

    name = "minus"

    def reward(self, rewards: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
        return rewards - 1

    def advantages(self, advantages: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
        return advantages - 1

    def loss(self, rows: LossRows) -> torch.Tensor:
        return torch.ones(len(rows.prompts))


def test_hooks_are_those_that_a_class_defines_and_run_in_the_order_given() -> None:
    policy = ToyPolicy()
    one, two = Half(policy, MitigationParams()), Minus(policy, MitigationParams())
    expected: frozenset[Hook] = frozenset({"reward", "stop"})
    assert Half.uses(one.params) == expected
    chain = policy.rollout(["ant", "bee"], torch.Generator().manual_seed(0))
    rewards = torch.tensor([4.0, 6.0])
    assert Mitigations([one, two]).reward(rewards, chain).tolist() == [1, 2]
    both = Mitigations([two, one])
    assert both.reward(rewards, chain).tolist() == [1.5, 2.5]
    assert both.advantages(torch.zeros(2, 2), chain).tolist() == [[-1, -1], [-1, -1]]
    # 1 and then half of 3 and 5; the penalty was not asked for
    expected_metrics = {"mitigation/minus/reward": 1.0, "mitigation/minus/loss": 0.0, "mitigation/half/reward": 2.0}
    assert both.take_metrics(policy.world) == expected_metrics
    none = Mitigations()
    assert none.reward(rewards, chain) is rewards and none.stop({}) is None and none.take_metrics(policy.world) == {}
    assert [both.stop({}) for _ in range(3)] == [None, None, "three rounds are enough"]


def test_a_mitigation_that_reads_a_kl_says_so() -> None:
    from overopt_bench.types import step_kl

    with pytest.raises(ValueError, match="set `reads_kl = True`"):
        step_kl(ToyPolicy().rollout(["ant"], torch.Generator().manual_seed(0)))


def test_a_stop_ends_training_and_the_policy_is_evaluated_where_other_curves_end(
    tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    register_mitigation(Half)
    folder = run(tmp_path, "half", budget=640)
    (stop,) = rows(folder, "stop")
    assert (stop["round"], stop["queries"], stop["reason"]) == (3, 96, "three rounds are enough")
    assert [row["queries"] for row in rows(folder, "eval")] == [0, 640] and len(rows(folder, "train")) == 3
    assert "training ends early: three rounds are enough" in capsys.readouterr().out
    train = rows(folder, "train")[0]
    assert train["mitigation/half/reward"] == pytest.approx(train["proxy/mean"] / 2)
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"


def test_a_resumed_run_goes_on_to_the_same_numbers(tmp_path: Path, clean_registry: None) -> None:
    """Killed in its second round; the mitigation's count and the penalty's passes go on as if nothing had been."""

    class Adaptive(Half):
        name = "adaptive"
        dies = False

        def reward(self, rewards: torch.Tensor, trajectory: Trajectory) -> torch.Tensor:
            if self.dies and self.rounds == 1:
                raise FloatingPointError("the light went out")
            return rewards - self.rounds * rewards.abs()

    register_mitigation(Adaptive)
    chosen = ("adaptive", "kl:beta=0.5")
    whole = rows(run(tmp_path / "whole", *chosen))
    Adaptive.dies = True
    with pytest.raises(RunError, match="the light went out"):
        run(tmp_path / "cut", *chosen)
    Adaptive.dies = False
    again = rows(run(tmp_path / "cut", *chosen))
    assert again == whole and len([row for row in whole if row["event"] == "train"]) == 3
