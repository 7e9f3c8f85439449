"""Prompts on their way into a run: made uniform whichever way they come, refused where no reward can judge them."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

from overopt_bench import api, cli
from overopt_bench.config import check_prompts, read_config_file, resolve, warnings
from overopt_bench.errors import UserError
from overopt_bench.evaluation.splits import make_split
from overopt_bench.prompts.files import read_prompt_file
from overopt_bench.registry import get_reward, get_suite, register_reward
from overopt_bench.training import loop as train
from overopt_bench.types import Reward

SMALL: dict[str, Any] = {
    "suite": "mini", "algo": "base", "proxy": "aesthetic", "eval_points": 2, "eval_images": 8, "num_steps": 2, "budget": 4,
}  # fmt: skip
RUN = [w for k, v in SMALL.items() for w in (f"--{k.replace('_', '-')}", str(v))] + ["--device", "cpu"]
HELD_OUT = get_suite("mini").prompts["heldout"]


def recorded(out: Path) -> dict[str, Any]:
    (path,) = out.rglob("config.json")
    return dict(json.loads(path.read_text())["config"])


def scores(out: Path) -> list[dict[str, Any]]:
    (path,) = out.rglob("metrics.jsonl")
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["event"] == "scores"]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_every_way_in_gives_each_prompt_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = write(tmp_path, "a.txt", "fox face\ncat face \nfox face\n")
    given = write(tmp_path, "a.yaml", "train_prompts: [fox face, 'cat  face', fox face]\n")
    named = write(tmp_path, "b.yaml", f"train_prompts: {twice}\n")
    for k, words in enumerate((["--prompts", twice], ["--config", given], ["--config", named])):
        assert cli.main(["run", *RUN, *words, "--out", str(tmp_path / str(k))]) == 0
        assert recorded(tmp_path / str(k))["train_prompts"] == ["fox face", "cat face"]
        assert capsys.readouterr().err.count("1 made uniform, 1 repeated dropped; 2 remain") == 1
    assert resolve({**SMALL, "train_prompts": ["owl", "owl"]}).train_prompts == ("owl",)


def test_a_column_is_asked_for_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write(tmp_path, "a.csv", 'animal,place\n"fox face, big",wood\nowl,"tree, house"\n')
    words = ["run", *RUN, "--out", str(tmp_path / "out"), "--prompts", table]
    assert cli.main(words) == 2
    assert "--prompt-column NAME; there are 'animal', 'place'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--prompt-column", "animal"]) == 0
    assert recorded(tmp_path / "out")["train_prompts"] == ["fox face, big", "owl"]
    assert cli.main(["run", *RUN, "--prompt-column", "animal", "--out", str(tmp_path / "b")]) == 2
    assert "there is no file of prompts" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "sweep", "train"])
def test_what_a_reward_cannot_judge_is_refused_before_anything_is_written(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "a.txt", "fox face\na red cube\nnothing known\n")
    out = tmp_path / "out"
    if command == "train":
        config = resolve({**SMALL, "train_prompts": ["fox face", "a red cube", "nothing known"]})
        with pytest.raises(UserError) as caught:
            train.run(config, out=out)
        said = str(caught.value)
    else:
        seeds = ["--seeds", "0-1"] if command == "sweep" else []
        start = RUN[: RUN.index("--num-steps")]  # which a sweep does not have
        words = [*start, "--device", "cpu", "--prompts", file, "--out", str(out), *seeds]
        assert cli.main([command, *words]) == 2
        said = capsys.readouterr().err
        assert said.count("error:") == 1
    assert "knows no name in the prompt 'a red cube' nor in 1 others; did you mean 'red apple'?" in said
    assert not out.exists()


def test_every_evaluated_reward_is_asked(tmp_path: Path, clean_registry: None) -> None:
    @register_reward
    class Short(Reward):
        """Judges short prompts."""

        name = "short"

        @classmethod
        def check_prompts(cls, prompts: Any, suite: Any) -> None:
            if long := [prompt for prompt in prompts if len(prompt) > 16]:
                raise UserError(f"short cannot judge {long[0]!r}")

        def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
            return images.mean((1, 2, 3))

    long = {"train_prompts": ["a fox face that is long"]}
    for rewards in ({"gold": ["short"]}, {"proxy": "short"}, {"proxy": "mean:short+aesthetic"}):
        with pytest.raises(UserError, match="short cannot judge 'a fox face that is long'"):
            train.run(resolve({**SMALL, **long, **rewards}), out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_judge_knows_names_in_any_case() -> None:
    judge, images = get_reward("human", get_suite("mini")), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        fox, lower, upper = judge(images[:1].repeat(3, 1, 1, 1), ["fox face", "Fox face", "A big FOX FACE"])
    assert fox == lower == upper
    tokens = get_suite("mini").tokens(["fox face", "Fox Face"])
    assert torch.equal(tokens[0], tokens[1])  # so the base model draws them alike


def test_overlap_with_held_out_prompts_is_warned_of_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, "a.txt", f"fox face\n{HELD_OUT[0].upper()}\n{HELD_OUT[9]}\n")
    assert cli.main(["run", *RUN, "--prompts", file, "--out", str(tmp_path / "out")]) == 0
    assert (
        f"2 of the 16 prompts of the split 'heldout' are trained on, such as {HELD_OUT[0]!r}" in capsys.readouterr().err
    )
    rows = {row["split"]: row for row in scores(tmp_path / "out")}
    assert rows["heldout"]["trained_on"] == [HELD_OUT[0]]  # of those that were drawn
    assert all("trained_on" not in row for split, row in rows.items() if split != "heldout")


def test_built_in_splits_overlap_only_where_said() -> None:
    def lines(**given: Any) -> list[str]:
        return [line for line in warnings(resolve({**SMALL, **given})) if "trained on" in line]

    assert lines() == lines(train_split="tuning") == lines(suite="sd14") == []
    (line,) = lines(suite="sd14", train_split="imagenet_animals")
    assert "1 of the 6 prompts" in line


def test_a_prompt_that_comes_twice_in_a_suite_is_drawn_with_other_noise() -> None:
    split = make_split("train", ["fox", "owl", "fox"], 8, 0, (2, 3))
    assert split.prompts == ("fox",) * 4 + ("owl",) * 4 and split.index == (0, 1, 2, 3) * 2
    assert len({tuple(noise.flatten().tolist()) for noise in split.noise.unbind(1)}) == 8


def test_eval_and_score_refuse_what_an_asked_reward_cannot_judge(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train.run(resolve({**SMALL, "algo": "ddpo", "params": {"samples_per_epoch": 4}}), out=tmp_path)
    words = ["eval", str(folder), "--device", "cpu", "--count", "2"]
    assert cli.main([*words, "--reward", "human", "--prompt", "a red cube"]) == 2
    assert "did you mean 'red apple'?" in capsys.readouterr().err
    assert cli.main([*words, "--prompt", " "]) == 2
    assert "--prompt: prompt 1 is empty" in capsys.readouterr().err
    table = api.eval(folder, ["fox face", "fox  face", "Owl"], ["human"], count=2)
    assert table["images"].tolist() == [4]  # of two prompts, no image twice
    assert "1 repeated dropped; 2 remain" in capsys.readouterr().err
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    ask = ["score", "--suite", "mini", "--device", "cpu", "--csv", str(tmp_path / "a.png"), "--reward", "human"]
    capsys.readouterr()
    assert cli.main([*ask, "--prompt", "a red cube"]) == 2
    assert "did you mean 'red apple'?" in capsys.readouterr().err
    values = []
    for prompt in ("fox face", "Fox Face"):
        assert cli.main([*ask, "--prompt", prompt]) == 0
        values.append(pd.read_csv(io.StringIO(capsys.readouterr().out))["human"][0])
    assert values[0] == values[1]


def test_another_long_list_is_refused_in_a_short_line(tmp_path: Path) -> None:
    prompts = [f"fox face {k}" for k in range(1000)]
    train.run(resolve({**SMALL, "train_prompts": prompts}), out=tmp_path)
    with pytest.raises(UserError, match=r"another configuration \(train_prompts: \['fox face 0', ") as caught:
        train.run(resolve({**SMALL, "train_prompts": prompts[:-1]}), out=tmp_path)
    assert len(str(caught.value)) < 500


@pytest.mark.slow
def test_a_hundred_thousand_prompts_are_no_burden(tmp_path: Path) -> None:
    """Reading, checks, hash and record take a few seconds on one core; anything quadratic would take hours."""
    names = get_suite("mini").names
    file = write(tmp_path, "a.txt", "\n".join(f"{names[k % len(names)]} number {k}" for k in range(100_000)))
    started = time.process_time()
    config = resolve({**SMALL, "train_prompts": read_prompt_file(Path(file))[0]})
    check_prompts(config, get_suite("mini"))
    assert warnings(config) == []
    record = {"schema": 1, "config": config.model_dump(mode="json"), "config_hash": config.config_hash()}
    (tmp_path / "config.json").write_text(json.dumps(record, indent=1))
    assert resolve(read_config_file(tmp_path / "config.json")) == config
    assert len(config.train_prompts) == 100_000 and time.process_time() - started < 20
