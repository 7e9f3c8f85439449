"""Steps whose gradient is not finite: skipped and counted alike in every precision; ten in a row fail the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from overopt_bench import cli
from overopt_bench.compute.optimizer import MAX_SKIPPED, Optimizer
from overopt_bench.compute.processes import World


def make(scaled: bool = False, world: World | None = None, max_grad_norm: float = 1.0) -> Optimizer:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    return Optimizer(
        [parameter], lr=0.1, weight_decay=0.01, max_grad_norm=max_grad_norm, world=world or World(), scaled=scaled
    )


def step(optimizer: Optimizer, factor: float) -> float:
    """One step on the loss factor x (3 p_0 + 4 p_1), whose gradient has norm 5 x factor."""
    (parameter,) = optimizer.parameters
    optimizer.backward((parameter * torch.tensor([3.0, 4.0])).sum() * factor)
    return optimizer.step()


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_step_changes_nothing_and_is_counted(bad: float, scaled: bool) -> None:
    optimizer, plain = make(scaled), make()
    (parameter,), (other,) = optimizer.parameters, plain.parameters
    assert step(optimizer, 0.1) == pytest.approx(0.5, rel=1e-6) and step(plain, 0.1) == pytest.approx(0.5, rel=1e-6)
    before = parameter.detach().clone()
    assert step(optimizer, bad) == 0 and step(optimizer, bad) == 0
    assert torch.equal(parameter, before) and optimizer.take_skipped() == 2 and optimizer.take_skipped() == 0
    assert step(optimizer, 0.2) == pytest.approx(1.0, rel=1e-6)
    step(plain, 0.2)
    torch.testing.assert_close(parameter, other)  # moments too are those of a run without the bad steps
    assert optimizer.take_skipped() == 0 and optimizer.skipped_in_a_row == 0


@pytest.mark.parametrize("scaled", [False, True])
def test_good_steps_are_those_of_adamw(scaled: bool) -> None:
    """To the bit without a scale: counting must change no number of a run in float32."""
    optimizer = make(scaled, max_grad_norm=0.7)
    other = nn.Parameter(optimizer.parameters[0].detach().clone())
    adamw = torch.optim.AdamW([other], lr=0.1, weight_decay=0.01)
    for k in range(5):
        step(optimizer, 0.1 * k + 0.05)
        ((other * torch.tensor([3.0, 4.0])).sum() * (0.1 * k + 0.05)).backward()
        nn.utils.clip_grad_norm_([other], 0.7)
        adamw.step()
        adamw.zero_grad()
    torch.testing.assert_close(optimizer.parameters[0], other, rtol=1e-6 if scaled else 0, atol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_ten_in_a_row_are_an_error_also_across_a_resume(scaled: bool) -> None:
    first, second = make(scaled), make(scaled)
    for _ in range(MAX_SKIPPED - 1):
        step(first, float("nan"))
    step(first, 0.1)  # one good step, and the count begins anew
    for _ in range(6):
        step(first, float("nan"))
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        step(second, float("nan"))
    with pytest.raises(FloatingPointError, match="not finite in 10 optimizer steps in a row"):
        step(second, float("nan"))


class Beside(World):
    """One of two processes; the other one's gradient is not finite."""

    def __init__(self) -> None:
        super().__init__(0, 2)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        for p in parameters:
            assert p.grad is not None
            p.grad += float("nan")


def test_all_processes_skip_what_one_of_them_must() -> None:
    optimizer = make(world=Beside())
    before = optimizer.parameters[0].detach().clone()
    assert step(optimizer, 0.1) == 0 and optimizer.take_skipped() == 1
    assert torch.equal(optimizer.parameters[0], before)


PLUGIN = '''
from overopt_bench.registry import register_reward
from overopt_bench.types import Reward

CALLS = [0]

@register_reward
class Steep(Reward):
    """Brightness; the gradient is NaN in every {period}. call that has one, the score never."""
    name, differentiable, needs_prompt = "steep", True, False

    def __call__(self, images, prompts):
        CALLS[0] += images.requires_grad
        bad = images.requires_grad and CALLS[0] > 1 and CALLS[0] % {period} == 0  # the first call is the probe
        extra = (images - images.detach()).square().sum((1, 2, 3)).sqrt() if bad else 0  # the root's slope at 0
        return images.mean((1, 2, 3)) + extra
'''
RUN = [
    "run", "--algo", "alignprop", "--proxy", "steep", "--device", "cpu", "--num-steps", "2", "--eval-points", "2",
    "--eval-images", "4", "--set", "batch_size=2", "--set", "truncation=fixed",
]  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gradient_that_is_always_nan_fails_the_run(
    precision: str, tiny_weights: Path, tmp_path: Path, clean_registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "steep.py").write_text(PLUGIN.format(period=1))
    words = [*RUN, "--suite", "sd14", "--weights", str(tiny_weights), "--plugin", str(tmp_path / "steep.py")]
    assert cli.main([*words, "--budget", "80", "--precision", precision, "--out", str(tmp_path)]) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: round 1 skipped 1 of its optimizer steps")
    reason = "the gradient was not finite in 10 optimizer steps in a row"
    assert reason in error and "the last good checkpoint is kept" in error
    (folder,) = tmp_path.glob("sd14/steep/alignprop/seed0")
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed" and status["reason"] == reason


@pytest.mark.parametrize(("suite", "precision"), [("mini", "float32"), ("sd14", "float16")])
def test_a_gradient_that_is_sometimes_nan_is_counted_and_said_once(
    suite: str,
    precision: str,
    tiny_weights: Path,
    tmp_path: Path,
    clean_registry: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "steep.py").write_text(PLUGIN.format(period=3))
    weights = ["--weights", str(tiny_weights)] if suite == "sd14" else []
    words = [*RUN, "--suite", suite, *weights, "--plugin", str(tmp_path / "steep.py"), "--budget", "12"]
    assert cli.main([*words, "--precision", precision, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("warning: round 2 skipped 1 of its optimizer steps") == 1
    rows = events(tmp_path / suite / "steep/alignprop/seed0", "train")
    assert [row["optimizer_steps/skipped"] for row in rows] == [0, 1, 0, 0, 1, 0]
    assert [row["grad_norm"] == 0 for row in rows] == [False, True, False, False, True, False]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == kind]


def test_the_critics_steps_are_counted_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TDPO has two optimizers; here the critic's gradient alone is spoilt."""
    from overopt_bench.algorithms.critic import TemporalCritic

    backward = Optimizer.backward

    def spoilt(optimizer: Optimizer, loss: torch.Tensor) -> None:
        backward(optimizer, loss)
        if optimizer.max_grad_norm == 0.5 and len(optimizer.parameters) == 10:
            optimizer.parameters[0].grad = torch.full_like(optimizer.parameters[0], float("nan"))

    assert len(list(TemporalCritic(4, (1, 1, 1, 1), "none", False, torch.Generator()).parameters())) == 10
    monkeypatch.setattr(Optimizer, "backward", spoilt)
    words = ["run", "--algo", "tdpo", "--proxy", "aesthetic", "--suite", "mini", "--device", "cpu", "--num-steps", "3"]
    words += ["--budget", "8", "--eval-points", "2", "--eval-images", "4"]
    for pair in (
        "samples_per_epoch=8",
        "images_per_prompt=4",
        "max_grad_norm=0.5",
        "batch_size=8",
        "critic_updates=1",
        "skip_last_steps=0",
    ):
        words += ["--set", pair]
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    (row,) = events(tmp_path / "mini/aesthetic/tdpo/seed0", "train")
    assert row["optimizer_steps"] == row["optimizer_steps/skipped"] == 3  # one update a denoising step
    assert row["critic/grad_norm"] == 0 < row["grad_norm"]
