"""Ensembles in whole runs: one standardisation for training, a resume and ``eval``, whatever is drawn there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overopt_bench import api, cli
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.errors import UserError
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.rewards.ensemble import Ensemble
from overopt_bench.seeding import stable_seed
from overopt_bench.training import loop as train

MEMBERS = ("aesthetic", "pickscore")
RUN = [
    "run", "--algo", "ddpo", "--proxy", "min:aesthetic+pickscore", "--suite", "mini", "--device", "cpu", "--num-steps", "2",
    "--budget", "16", "--eval-points", "3", "--eval-images", "4", "--set", "samples_per_epoch=8", "--set", "images_per_prompt=4",
]  # fmt: skip
FOLDER = Path("mini/min-aesthetic+pickscore/ddpo/seed0")


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows if kind in ("", row["event"])]


def newest(folder: Path) -> dict[str, Any]:
    return dict(torch.load(max((folder / "checkpoint").iterdir()), weights_only=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert cli.main([*RUN, "--out", str(out)]) == 0
    return out / FOLDER


def images(folder: Path, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """The first image of each prompt, of the base model and of the run, ``[B, 3, 32, 32]``."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=2, guidance_scale=1.0, eta=1.0, lora_rank=8, lora_alpha=8, seed=0
    )
    policy.load_state_dict(newest(folder)["policy"])
    generators = [torch.Generator().manual_seed(stable_seed("sample", 0, prompt, 0)) for prompt in prompts]
    z = torch.stack([torch.randn((4, *policy.latent_shape), generator=generator) for generator in generators], 1)
    with policy.base():
        base = policy.sample(z, prompts)[0].images
    return base, policy.sample(z, prompts)[0].images


def by_hand(folder: Path, drawn: Tensor, prompts: list[str]) -> Tensor:
    """Each member's score, standardised with the run's record, ``[2, B]``."""
    (recorded,) = events(folder, "calibration")
    suite, rows = get_suite("mini"), []
    for name in MEMBERS:
        rows.append((get_reward(name, suite)(drawn, prompts) - recorded[f"{name}/mean"]) / recorded[f"{name}/std"])
    return torch.stack(rows)


@pytest.mark.parametrize("prompts", [["fox face"], ["fox face", "owl", "penguin"]])
@pytest.mark.parametrize(("kind", "known"), [("min", True), ("mean", False)])
def test_eval_standardises_as_the_run(
    kind: str, known: bool, prompts: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One image or several; another ensemble of the same members, of which the run knows nothing, has the same values."""
    name = f"{kind}:aesthetic+pickscore"
    shown = api.eval(whole, prompts, [name, "human"], count=1, device="cpu").set_index("reward").loc[name]
    combine = {"min": lambda scores: scores.amin(0), "mean": lambda scores: scores.mean(0)}[kind]
    base, tuned = (combine(by_hand(whole, drawn, prompts)).mean().item() for drawn in images(whole, prompts))
    assert shown["base"] == pytest.approx(base, abs=1e-5) and shown["policy"] == pytest.approx(tuned, abs=1e-5)
    assert shown["change"] == pytest.approx(tuned - base, abs=1e-5) and shown["change"] != 0
    said = "is not in the run's record; standardised here on 128 base samples of its training prompts"
    assert capsys.readouterr().err.count(said) == (0 if known else 1)


def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once half of the budget is saved."""
    save = train._Session._save

    def stop(session: Any) -> None:
        save(session)
        if session.budget.queries == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(train._Session, "_save", stop)


def test_a_resume_keeps_the_standardisation_of_the_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere base samples differ in their last bits, and so would the reward; they must not even be drawn."""
    (recorded,), saved = events(whole, "calibration"), newest(whole)["calibration"]["min:aesthetic+pickscore"]
    assert saved == {key: value for key, value in recorded.items() if key.startswith(MEMBERS)} and len(saved) == 4
    with monkeypatch.context() as patch:
        interrupted(patch)
        assert cli.main([*RUN, "--out", str(tmp_path)]) == 130

    def elsewhere(*_: Any) -> Any:
        raise AssertionError("base samples are drawn again")

    monkeypatch.setattr(Evaluator, "base_samples", elsewhere)
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0
    assert events(tmp_path / FOLDER, "") == events(whole, "")


def test_a_checkpoint_from_before_calibrates_anew(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that were interrupted under an older version go on as they would have."""
    with monkeypatch.context() as patch:
        interrupted(patch)
        assert cli.main([*RUN, "--out", str(tmp_path)]) == 130
    path = max((tmp_path / FOLDER / "checkpoint").iterdir())
    state = torch.load(path, weights_only=True)
    del state["calibration"]
    torch.save(state, path)
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0
    assert events(tmp_path / FOLDER, "") == events(whole, "")


@pytest.mark.parametrize(
    "damage", [{}, {"pickscore/std": 0.0}, {"pickscore/std": float("nan")}, {"aesthetic/mean": float("inf")}]
)
def test_values_that_cannot_be_are_refused(damage: dict[str, float]) -> None:
    reward = get_reward("min:aesthetic+pickscore", get_suite("mini"))
    good = {"aesthetic/mean": 1.0, "aesthetic/std": 2.0, "pickscore/mean": 3.0, "pickscore/std": 4.0}
    with pytest.raises(UserError, match=r"min:aesthetic\+pickscore cannot be standardised with mean"):
        reward.load_calibration({**good, **damage} if damage else {})
    reward.load_calibration(good)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([1.0, float("nan")], "gives a base sample no finite score"), ([1.0], "gives every base sample the same score")],
)
def test_base_scores_that_cannot_be_standardised_are_named(
    scores: list[float], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = get_reward("min:aesthetic+pickscore", get_suite("mini"))
    monkeypatch.setattr(Ensemble, "_scores", lambda *_: torch.tensor([scores, scores]))
    with pytest.raises(UserError, match=message):
        reward.calibrate(torch.zeros(len(scores), 3, 32, 32), ["owl"] * len(scores))


RELATIVE = '''
from overopt_bench.registry import register_reward
from overopt_bench.types import Reward

@register_reward
class Relative(Reward):
    """How much brighter than the base model."""
    name, needs_prompt, needs_base_samples = "relative", False, True
    base = None

    def calibrate(self, images, prompts):
        facts = {{"brightness": images.mean().item()}}
        {load}
        return facts

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) - self.base
'''
TAKES_BACK = """
    def load_calibration(self, facts):
        self.base = facts["brightness"]
"""


def test_a_reward_from_outside_has_the_same_contract(
    tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that cannot take its values back is refused before anything is written, not at the first resume."""
    words = [word if word != "min:aesthetic+pickscore" else "relative" for word in RUN]
    (tmp_path / "good.py").write_text(RELATIVE.format(load="self.load_calibration(facts)") + TAKES_BACK)
    assert cli.main([*words, "--plugin", str(tmp_path / "good.py"), "--out", str(tmp_path / "good")]) == 0
    folder = tmp_path / "good/mini/relative/ddpo/seed0"
    (recorded,) = events(folder, "calibration")
    assert newest(folder)["calibration"] == {"relative": {"brightness": recorded["brightness"]}}
    table = api.eval(folder, ["owl"], ["relative"], count=1, device="cpu").iloc[0]
    base, tuned = (drawn.mean().item() - recorded["brightness"] for drawn in images(folder, ["owl"]))
    assert (table["base"], table["policy"]) == (pytest.approx(base, abs=1e-6), pytest.approx(tuned, abs=1e-6))


def test_a_reward_that_cannot_take_its_values_back_is_refused(
    tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word if word != "min:aesthetic+pickscore" else "relative" for word in RUN]
    (tmp_path / "bad.py").write_text(RELATIVE.format(load='self.base = facts["brightness"]'))
    assert cli.main([*words, "--plugin", str(tmp_path / "bad.py"), "--out", str(tmp_path / "bad")]) == 2
    assert "cannot take back what it learned from base samples" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
