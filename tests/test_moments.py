"""Advantages: exactly 0 for equal rewards of any size, no amplified rounding, else what exact arithmetic gives."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from toy_policy import ToyPolicy, context

from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.ppo import PerPromptStats, zero_spread_share
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.compute.moments import moments, standardise
from overopt_bench.errors import UserError
from overopt_bench.rewards.ensemble import Mean
from overopt_bench.types import Reward

SIZES = [10.0**k for k in range(-6, 7)]


def random_values(size: float, count: int = 40) -> list[float]:
    """float32 numbers of either sign and about that size."""
    drawn = torch.randn(count, generator=torch.Generator().manual_seed(int(1e6 * size))) * size
    return drawn.tolist()


def exact(values: torch.Tensor) -> tuple[float, Fraction]:
    """Mean and variance in rational arithmetic."""
    numbers = [Fraction(v) for v in values.tolist()]
    mean = sum(numbers, Fraction(0)) / len(numbers)
    return float(mean), sum(((v - mean) ** 2 for v in numbers), Fraction(0)) / len(numbers)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 32, 48, 127])
def test_equal_rewards_give_exactly_zero(size: float, count: int) -> None:
    for value in [25.3, *random_values(size)]:
        rewards = torch.full((count,), value)
        per_prompt, batch = PerPromptStats(count, count), PerPromptStats(count + 1, count + 1)
        for stats in (per_prompt, batch):
            advantages = stats.update(["a"] * count, rewards)
            assert advantages.dtype == torch.float32 and (advantages == 0).all()
            assert zero_spread_share(advantages, ["a"] * count) == 1
        assert (standardise(rewards, epsilon=1e-8) == 0).all() and moments(rewards)[1] == 0


@pytest.mark.parametrize("size", SIZES)
def test_rounding_is_not_amplified(size: float) -> None:
    """One unit in the last place between rewards that are equal but for rounding, in one sample or in half of them."""
    for value in random_values(size):
        here = torch.tensor(value)
        above = torch.nextafter(here, torch.tensor(float("inf")))
        for others in (1, 16):
            rewards = torch.cat([here.repeat(32 - others), above.repeat(others)])
            assert (PerPromptStats(32, 16).update(["a"] * 32, rewards) == 0).all()


@pytest.mark.parametrize("size", SIZES)
def test_moments_are_those_of_exact_arithmetic(size: float) -> None:
    for seed, offset in enumerate((0.0, 1.0, 1000.0)):
        noise = torch.randn(33, generator=torch.Generator().manual_seed(seed))
        values = (noise + offset) * size  # float32
        mean, variance = exact(values)
        assert moments(values) == (
            pytest.approx(mean, rel=1e-12, abs=1e-12 * size),
            pytest.approx(float(variance) ** 0.5),
        )
        expected = (values.double() - mean) / (float(variance) ** 0.5 + 1e-6)
        torch.testing.assert_close(standardise(values), expected.float(), rtol=1e-6, atol=1e-6)


def test_a_sample_that_left_a_tied_buffer_is_not_divided_by_nothing() -> None:
    """More samples of a prompt than its buffer holds: the first is no longer there, and the others are equal."""
    advantages = PerPromptStats(4, 4).update(["a"] * 5, torch.tensor([1.0, 2, 2, 2, 2]))
    assert (advantages == 0).all()


def test_a_tied_prompt_is_told_from_one_whose_history_differs() -> None:
    stats = PerPromptStats(4, 2)
    stats.update(["a", "a"], torch.tensor([1.0, 3.0]))
    advantages = stats.update(["a", "a", "b", "b"], torch.tensor([4.0, 4.0, 5.0, 5.0]))
    assert (advantages[:2] > 0).all() and (advantages[2:] == 0).all()
    assert zero_spread_share(advantages, ["a", "a", "b", "b"]) == 0.5


class Flat(Reward):
    """A reward that gives every image the same score."""

    name = "flat"

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, images: torch.Tensor, prompts: Any) -> torch.Tensor:
        return torch.full((len(images),), self.value)


@pytest.mark.parametrize("images_per_prompt", [1, 32])
def test_a_reward_without_spread_does_not_move_the_policy(images_per_prompt: int) -> None:
    ctx = context(ToyPolicy())
    ctx.proxy = Flat(25.3)
    algorithm = DDPO(ctx, DDPO.Params(samples_per_epoch=64, images_per_prompt=images_per_prompt, weight_decay=0))
    metrics = algorithm.step()
    assert metrics["grad_norm"] == metrics["advantage_spread"] == metrics["proxy/std"] == 0
    assert metrics["zero_spread_prompts"] == 1 and (ctx.policy.trainable()[0] == 0).all()


def test_tdpo_takes_nothing_from_differences_that_are_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns and values that agree to one rounding: the epoch's normalisation must not make order 1 of it."""
    ctx = context(ToyPolicy())
    algorithm = TDPO(ctx, TDPO.Params(samples_per_epoch=32, critic_hidden=(8, 4), probe_size=16, weight_decay=0))
    returns = torch.randn(32, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(algorithm.per_prompt_stats, "update", lambda prompts, rewards: returns)
    near = torch.stack([returns, torch.nextafter(returns, torch.tensor(9.0))], 1)  # [N, T]
    forward, calls = algorithm.critic.forward, []

    def first_exact(features: torch.Tensor) -> torch.Tensor:
        calls.append(len(features))
        return near if len(calls) == 1 else forward(features)

    monkeypatch.setattr(algorithm.critic, "forward", first_exact)
    metrics = algorithm.step()
    assert metrics["advantage_spread"] == metrics["grad_norm"] == 0


def test_an_ensemble_refuses_a_member_that_gives_one_score() -> None:
    class Two(Mean):
        name, members = "mean:flat+flat", ("flat", "other")

    with pytest.raises(UserError, match="flat gives every base sample the same score"):
        Two([Flat(25.3), Flat(25.3)]).calibrate(torch.rand(96, 3, 2, 2), ["a"] * 96)
