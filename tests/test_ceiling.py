"""``overopt-bench ceiling``: what a critic could explain, on a few images of the mini suite, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from overopt_bench import cli
from overopt_bench.algorithms.ppo import PerPromptStats
from overopt_bench.commands.ceiling import within_prompts
from overopt_bench.commands.questions import skipped_steps
from overopt_bench.evaluation.ceiling import BASE, Ceiling
from overopt_bench.evaluation.explaining import Critic, Explained, HeldOut, Inputs, Share
from overopt_bench.registry import get_suite, suites

SMALL = [
    "ceiling",
    "--suite",
    "mini",
    "--device",
    "cpu",
    "--images",
    "20",
    "--num-steps",
    "2",
    "--skip-last-steps",
    "1",
]


def test_returns_are_those_that_algorithms_learn_from() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0, 5.0, 6.0, 5.0])
    groups = torch.tensor([0, 1, 0, 1, 0, 1])
    learned = PerPromptStats(buffer_size=8, min_count=1).update([str(k) for k in groups.tolist()], scores)
    assert torch.equal(within_prompts(scores, groups), learned) and bool((learned[groups == 1] == 0).all())


def test_the_suites_settings_say_which_steps_are_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that it sets for any algorithm."""
    own: dict[str, dict[str, Any]] = {
        "ddpo": {"skip_last_steps": 1},
        "tdpo": {"skip_last_steps": 3},
        "nft": {"lr": 0.1},
    }
    monkeypatch.setattr(suites.get("mini"), "settings", classmethod(lambda cls, algorithm: own.get(algorithm, {})))
    assert skipped_steps(get_suite("mini")) == 3


@pytest.mark.slow
def test_numbers_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two proxies, from the same chains; the file of one ending holds what the other does."""
    assert cli.main([*SMALL, "--proxy", "aesthetic,pickscore", "--out", str(tmp_path / "a.json")]) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["images"], found["prompts"], found["num_steps"], found["trained_steps"]) == (20, 5, 2, 1)
    assert (found["policy"], found["queries"]) == ("the base model", 0) and "returns of the base model" in said
    assert [*found["rows"]] == ["aesthetic", "pickscore"] and all(len(rows) == 10 for rows in found["rows"].values())
    for row in found["rows"]["aesthetic"]:
        assert len(row["steps"]) == 2 and row["trained"] == row["steps"][0] and row["pooled"]["value"] <= 1
        assert f"{row['pooled']['value']:.3f} ±{row['pooled']['error']:.3f}" in said
    assert [row["held_out"] for row in found["rows"]["aesthetic"]] == ["chains"] * 5 + ["prompts"] * 5
    assert cli.main([*SMALL, "--proxy", "aesthetic", "--out", str(tmp_path / "a.csv")]) == 0
    table = pd.read_csv(tmp_path / "a.csv")
    for column, kind in (("pooled", "value"), ("pooled error", "error")):
        assert table[column].tolist() == pytest.approx([row["pooled"][kind] for row in found["rows"]["aesthetic"]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json"]


def test_sentences_say_no_more_than_the_errors_allow() -> None:
    """Of a step below two standard errors that nothing is found there; of each kind of held-out data in its own words."""
    clear, faint = Share(0.05, 0.01), Share(0.05, 0.04)
    kinds: list[tuple[Critic, Inputs, tuple[Share, ...]]] = [
        ("linear", "features", (faint, faint, faint)),
        ("linear", "features, a model a step", (faint, clear, faint)),
        ("mlp", "features, step, prompt", (clear, clear, clear)),
    ]
    places: tuple[HeldOut, ...] = ("chains", "prompts")
    rows = tuple(
        Explained(critic, inputs, held_out, faint, clear, steps if held_out == "chains" else (faint, faint, faint))
        for held_out in places
        for critic, inputs, steps in kinds
    )
    whose, _, chains, prompts = Ceiling(BASE, 0, "mini", "train", 5, 80, 0, 3, 2, {"truth": rows}).sentences()
    assert whose == "Returns are those of the base model."
    assert chains.startswith("truth, held-out chains of known prompts: ") and prompts.startswith(
        "truth, held-out prompts: "
    )
    assert "explains 5.0% ± 4.0% over all steps and 5.0% ± 1.0% over those trained on (0 to 1)" in chains
    assert "and finds nothing at steps 0, 2; the perceptron" in chains and chains.endswith(
        "finds something at every step."
    )
    assert prompts.count("finds nothing at any step") == 2


FLAT = """
from overopt_bench.registry import register_reward
from overopt_bench.types import Reward

@register_reward
class Flat(Reward):
    name, needs_prompt = "flat", False

    def __call__(self, images, prompts):
        return images.new_full((len(images),), 0.3)
"""


def test_a_proxy_without_spread_is_refused(
    clean_registry: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    assert cli.main([*SMALL, "--proxy", "flat", "--plugin", str(tmp_path / "flat.py")]) == 2
    error = capsys.readouterr().err
    assert "'flat' gives all images of a prompt the same score" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proxy", "aestetic"], "did you mean 'aesthetic'"),
        ([], "--proxy is required where no --run gives it"),
        (["--proxy", ","], "--proxy needs at least one name"),
        (["--proxy", "aesthetic", "--suite", "nimi"], "did you mean 'mini'"),
        (["--proxy", "aesthetic", "--train-split", "tunning"], "did you mean 'tuning'"),
        (["--proxy", "aesthetic", "--images", "9"], "--images 9 is too few: at least 10"),
        (["--proxy", "aesthetic", "--out", "a.txt"], "end in .json or .csv"),
        (["--proxy", "aesthetic", "--out", "no_such_folder/a.csv"], "there is no folder no_such_folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*SMALL, *words]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and err.count("\n") == 1


def test_a_suite_of_too_few_prompts_is_refused(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ceiling", "--suite", "tiny", "--device", "cpu", "--proxy", "truth"]) == 2
    assert "'train' of tiny has 2 prompts; at least 5 are needed" in capsys.readouterr().err
