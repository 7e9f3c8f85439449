"""DiffusionNFT: its loss against arrays made without torch, and its way through a policy whose prediction is known."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_policy import Spy, ToyPolicy, ToyProxy, context
from uphill import climb

from overopt_bench.algorithms.nft import NFT, NFTParams, nft_loss

GOLDEN = np.load(Path(__file__).parent / "golden" / "beyond.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[f"nft_{name}"]))


def clean_latent(x_t: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
    """What a prediction of the noise says that the clean latent is."""
    alpha = alpha.view(-1, *[1] * (x_t.ndim - 1))
    return (x_t - (1 - alpha).sqrt() * noise) / alpha.sqrt()


def loss_of_noise(noise: Tensor, old: Tensor, optimality: Tensor, beta: float) -> Tensor:
    x_t, alpha = golden("x_t"), golden("abar")
    predictions = (clean_latent(x_t, e, alpha) for e in (noise, old))
    return nft_loss(*predictions, golden("x0"), optimality, beta, golden("advantage_clip").item())


def test_loss_and_gradient_are_those_of_the_golden_arrays() -> None:
    noise = golden("eps_theta").requires_grad_()
    loss = loss_of_noise(noise, golden("eps_old"), golden("weight"), golden("beta").item())
    torch.testing.assert_close(loss.detach(), golden("loss"), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), noise)
    torch.testing.assert_close(gradient, golden("loss_grad_eps"), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_at_the_old_policy_the_gradient_is_the_advantage_times_that_of_denoising(beta: float) -> None:
    """For every beta; the loss itself does not depend on the advantage there."""
    noise = golden("eps_old").requires_grad_()
    loss = loss_of_noise(noise, golden("eps_old"), golden("weight"), beta)
    (gradient,) = torch.autograd.grad(loss.sum(), noise)
    torch.testing.assert_close(gradient, golden("loss_grad_eps_at_old"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, loss_of_noise(noise, golden("eps_old"), torch.zeros(6), beta), rtol=1e-9, atol=0)


def test_loss_worked_by_hand() -> None:
    """Alpha 0.64, clean 1, noise 0.5: x_t 1.1. Old 0.3: 1.15; new 0.4 and beta 0.5: 1.1125 and 1.1875. Advantage 2 of 5."""
    x_t, alpha = torch.tensor([[[[1.1]]]], dtype=torch.float64), torch.tensor([0.64], dtype=torch.float64)
    noise = torch.full_like(x_t, 0.4).requires_grad_()
    current, old = clean_latent(x_t, noise, alpha), clean_latent(x_t, torch.full_like(x_t, 0.3), alpha)
    loss = nft_loss(current, old, torch.ones_like(x_t), torch.tensor([0.7]), 0.5, 5.0)
    (gradient,) = torch.autograd.grad(loss.sum(), noise)
    assert old.item() == pytest.approx(1.15)
    assert loss.item() == pytest.approx(1.35) and gradient.item() == pytest.approx(-3)


def build(*, seed: int = 0, left: int = 10**9, **changes: Any) -> NFT:
    params = {"samples_per_epoch": 48, "images_per_prompt": 8, "lr": 0.03, **changes}
    return NFT(context(ToyPolicy(steps=3), seed=seed, proxy=ToyProxy(left)), NFTParams(**params))


def test_first_update_is_advantage_weighted_denoising() -> None:
    """The toy predicts noise 0 first, so the clean latent's error is the noise alone, times noise level over signal."""
    algorithm = build(updates_per_epoch=1, max_grad_norm=1e9)
    policy: Any = algorithm.ctx.policy
    spy, seen = Spy(algorithm, "terms"), []
    algorithm.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    algorithm.step()
    noise, timesteps = spy.joined(1).flatten(1), spy.joined(2)
    advantages = (2 * spy.joined(4) - 1) * algorithm.params.advantage_clip
    signal, level = (v.flatten() for v in policy.schedule.levels(timesteps))
    rows = -(advantages * level / signal / noise.abs().mean(1))[:, None] * noise  # 2 / d = 1
    expected = torch.stack([rows[timesteps == t].sum(0) for t in policy.schedule.timesteps]) / len(rows)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-6)
    assert (advantages.abs() > 0.5).any() and (timesteps.bincount() > 0).all()


def test_images_come_from_the_old_policy_without_noise() -> None:
    algorithm = build()
    policy: Any = algorithm.ctx.policy
    with torch.no_grad():
        policy.shift += 1  # the copy stays where it was
    draws = copy.deepcopy(algorithm.ctx.generators["sampling"])
    spy = Spy(algorithm, "update")
    algorithm.step()
    start = policy.draw_noise(48, draws)[0]
    for clean in {tuple(row) for row in spy.joined(0).flatten(1).tolist()}:
        assert (start.flatten(1) / 8 - torch.tensor(clean)).abs().sum(1).min() < 1e-6  # halved three times


def test_the_suites_noise_is_kept_where_asked() -> None:
    ends = []
    for deterministic in (True, False):
        algorithm = build(deterministic=deterministic)
        spy = Spy(algorithm, "update")
        algorithm.step()
        ends.append(spy.joined(0).std().item())
    assert ends[0] == pytest.approx(1 / 8, rel=0.3) and ends[1] > 3 * ends[0]


def test_old_copy_follows_by_both_published_schedules() -> None:
    late = build(old_decay_rate=0.0075, old_decay_flat=75, old_decay_max=0.999)
    for algorithm, expected in (
        (build(), {0: 0, 100: 0.1, 500: 0.5, 900: 0.5}),
        (late, {0: 0, 75: 0, 175: 0.75, 900: 0.999}),
    ):
        for updates, decay in expected.items():
            algorithm.updates = updates
            assert algorithm.old_decay() == pytest.approx(decay)


def test_old_copy_is_blended_after_the_epoch() -> None:
    algorithm = build(updates_per_epoch=2, old_decay_rate=0.2, old_decay_flat=1, reference=0)
    policy: Any = algorithm.ctx.policy
    metrics = algorithm.step()
    copied = policy.state_dict()["old"]
    assert metrics["old_decay"] == pytest.approx(0.2) and metrics["optimizer_steps"] == 2
    torch.testing.assert_close(copied, 0.8 * policy.shift.detach())  # 0.2 of the start, which is 0
    assert metrics["old_deviate"] > 0 and metrics["ref_deviate"] == pytest.approx(metrics["old_deviate"], rel=1e-4)


def test_distances_are_in_velocities() -> None:
    """v = (e - sqrt(1 - a) y) / sqrt(a) at one y, so velocities differ by what noises differ by, over the signal."""
    algorithm = build(reference=1.0)
    policy: Any = algorithm.ctx.policy
    with torch.no_grad():
        policy.shift += 0.1
    policy.keep("old")
    steps = torch.tensor([2, 0])
    clean = noise = torch.ones(2, 2, 1, 1)
    terms = algorithm.terms(clean, noise, steps, ["ant"] * 2, torch.tensor([0.5, 0.5]))
    signal = policy.schedule.levels(steps)[0].flatten()
    torch.testing.assert_close(terms.ref_deviate, (0.1 / signal) ** 2)
    assert (terms.old_deviate == 0).all()


def test_each_image_has_a_random_subset_of_timesteps() -> None:
    algorithm = build(timestep_fraction=0.99)
    ((sample, step),) = algorithm.batches(40)
    pairs = list(zip(sample.tolist(), step.tolist(), strict=True))
    assert len(pairs) == len(set(pairs)) == 80  # two of three
    assert Counter(sample.tolist()) == dict.fromkeys(range(40), 2) and set(step.tolist()) == {0, 1, 2}
    assert [len(s) for s, _ in build(updates_per_epoch=3).batches(2)] == [2, 2]


def test_micro_batches_change_nothing() -> None:
    ends = []
    for micro in (7, 512):
        algorithm = build()
        algorithm.ctx.micro_batch = micro
        algorithm.step()
        ends.append(algorithm.ctx.policy.shift.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_budget_is_never_overspent() -> None:
    algorithm = build(left=101)  # two rounds of 48, then less than a group
    proxy: Any = algorithm.ctx.proxy
    while proxy.left:
        algorithm.step()


def test_state_goes_on_bit_for_bit() -> None:
    """The copy travels with the policy, the count of updates with the algorithm."""
    settings = {"old_decay_rate": 0.1, "updates_per_epoch": 2}
    whole = build(**settings)
    whole.step(), whole.step()
    policy: Any = whole.ctx.policy
    state = copy.deepcopy(
        (whole.state_dict(), policy.state_dict(), [g.get_state() for g in whole.ctx.generators.values()])
    )
    expected = whole.step()
    other = build(seed=5, **settings)
    other_policy: Any = other.ctx.policy
    other.load_state_dict(state[0]), other_policy.load_state_dict(state[1])
    for generator, draws in zip(other.ctx.generators.values(), state[2], strict=True):
        generator.set_state(draws)
    assert other.step() == expected and expected["old_decay"] == pytest.approx(0.5)
    for name, value in policy.state_dict().items():
        assert torch.equal(other_policy.state_dict()[name], value)


@pytest.mark.slow
def test_reward_rises_on_the_mini_network() -> None:
    before, after = climb(NFT, 2, samples_per_epoch=64, images_per_prompt=32, lr=1e-2, updates_per_epoch=4)
    assert after > before + 0.02
