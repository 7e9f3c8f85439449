"""Ensembles by hand, and of real rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from published_rewards import ask, noise
from torch import Tensor

from overopt_bench.errors import UserError
from overopt_bench.registry import get_reward, get_suite, rewards
from overopt_bench.types import Reward

pytestmark = pytest.mark.usefixtures("one_thread")


class Pixel(Reward):
    """Scores an image by ten times one value of its first pixel; channel k for the k-th member."""

    differentiable = True

    def __init__(self, channel: int, factor: float = 10.0) -> None:
        self.channel, self.factor = channel, factor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.factor * images[:, self.channel, 0, 0]


def first_pixels(*values: tuple[float, float]) -> Tensor:
    """Images ``[B, 3, 2, 2]`` whose first pixel's two channels are given in tenths."""
    images = torch.zeros(len(values), 3, 2, 2)
    images[:, :2, 0, 0] = torch.tensor(values) / 10
    return images


BASE = first_pixels((1, 2), (2, 4), (3, 6))  # means 2 and 4, deviations (n - 1) 1 and 2


def ensemble(kind: str, *members: Reward) -> Any:
    cls: Any = rewards.get(f"{kind}:aesthetic+imagereward", "sd")
    return cls(members or (Pixel(0), Pixel(1)))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # of (4, 2), (2, 4), (1, 8): standardised (2, -1), (0, 0), (-1, 2)
        ("mean", [0.5, 0.0, 0.5]),
        ("min", [-1.0, 0.0, -1.0]),
        ("uwo", [0.5 - 0.5 * 2.25, 0.0, 0.5 - 0.5 * 2.25]),  # population variance of (2, -1) is 1.5^2
    ],
)
def test_ensembles_by_hand(kind: str, expected: list[float]) -> None:
    reward = ensemble(kind)
    facts = reward.calibrate(BASE, [""] * 3)
    assert facts == pytest.approx(
        {"aesthetic/mean": 2, "aesthetic/std": 1, "imagereward/mean": 4, "imagereward/std": 2}
    )
    scores = reward(first_pixels((4, 2), (2, 4), (1, 8)), [""] * 3)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "uwo"])
def test_ensembles_do_not_see_a_members_scale(kind: str) -> None:
    """Standardising takes a factor out again; base samples themselves have mean 0 under ``mean``."""
    one, other = ensemble(kind), ensemble(kind, Pixel(0, 1000.0), Pixel(1, 0.1))
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for reward in (one, other):
        reward.calibrate(BASE, [""] * 3)
    torch.testing.assert_close(one(images, [""] * 5), other(images, [""] * 5), rtol=1e-4, atol=1e-4)
    if kind == "mean":
        assert one(BASE, [""] * 3).mean().item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_of_min_flows_to_one_member() -> None:
    """To the lowest of each image: d score / d first pixel = 10 / deviation there and 0 elsewhere; mean gives each half."""
    lowest, average = ensemble("min"), ensemble("mean")
    for reward in (lowest, average):
        reward.calibrate(BASE, [""] * 3)
    images = first_pixels((4, 2), (1, 8)).requires_grad_()
    (gradient,) = torch.autograd.grad(lowest(images, ["", ""]).sum(), images)
    torch.testing.assert_close(gradient[:, :2, 0, 0], torch.tensor([[0.0, 5.0], [10.0, 0.0]]))
    (gradient,) = torch.autograd.grad(average(images, ["", ""]).sum(), images)
    torch.testing.assert_close(gradient[:, :2, 0, 0], torch.tensor([[5.0, 2.5], [5.0, 2.5]]))


@pytest.mark.parametrize("suite", ["sd14", "mini"])
@pytest.mark.parametrize("kind", ["mean", "min", "uwo"])
def test_an_ensemble_of_real_rewards_is_that_of_its_members(kind: str, suite: str, weights: Path) -> None:
    """``min:aesthetic+imagereward`` and the others, in the mini suite too, with their members' scores put together here."""
    world = get_suite(suite, weights=None if suite == "mini" else weights)
    side = 32 if suite == "mini" else 64
    base, images = noise(6, side, side), noise(3, side, side, seed=1)
    words = list(world.prompts["train"][:6])
    reward = get_reward(f"{kind}:aesthetic+imagereward", world)
    assert reward.name == f"{kind}:aesthetic+imagereward" and reward.needs_prompt and reward.differentiable
    assert reward.needs_base_samples and reward.feature_dim == get_reward("aesthetic", world).feature_dim
    reward.calibrate(base, words)
    parts = []
    for name in ("aesthetic", "imagereward"):
        member = get_reward(name, world)
        before = ask(member, base, words)
        parts.append((ask(member, images, words[:3]) - before.mean()) / before.std())
    a, b = parts
    truth = {"mean": (a + b) / 2, "min": torch.minimum(a, b), "uwo": (a + b) / 2 - 0.5 * ((a - b) / 2) ** 2}[kind]
    torch.testing.assert_close(ask(reward, images, words[:3]), truth, rtol=1e-4, atol=1e-4)
    assert torch.equal(reward.features(images), get_reward("aesthetic", world).features(images))
    assert re.fullmatch(r"aesthetic \S.*; imagereward \S.*", str(reward.weights_hash()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean:aesthetic", "needs two or more different rewards"),
        ("min:", "needs two or more different rewards"),
        ("min:aesthetic+aesthetic", "needs two or more different rewards"),
        ("uwo:aesthetic+pikscore", "did you mean 'pickscore'"),
        ("mean:aesthetic+min:clipscore+pickscore", "members are plain rewards"),
        ("median:aesthetic+pickscore", "no reward"),
        ("mean:aesthetic+", "no reward"),
        ("mean:aesthetic+human", "not in the suite 'sd'"),
    ],
)
def test_ensembles_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        rewards.get(name, "sd")


def test_an_ensemble_without_base_samples_says_so() -> None:
    with pytest.raises(UserError, match=r"min:aesthetic.imagereward is standardised on base samples and has seen none"):
        ensemble("min")(BASE, [""] * 3)


def test_a_member_that_is_constant_is_named() -> None:
    flat = first_pixels((1, 2), (1, 4), (1, 6))
    with pytest.raises(UserError, match="aesthetic gives every base sample the same score"):
        ensemble("uwo").calibrate(flat, [""] * 3)
