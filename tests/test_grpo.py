"""Group-relative advantages, GRPO-Guard's ratio and a window of noise, against arrays made without torch."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_policy import Spy, ToyPolicy, ToyProxy, context
from uphill import climb

from overopt_bench.algorithms.groups import Scale, group_advantages
from overopt_bench.algorithms.grpo import GRPO, GRPOParams
from overopt_bench.algorithms.ppo import PolicyUpdater, clipped_surrogate, guarded_log_ratio
from overopt_bench.types import ImageCost, Transition

GOLDEN = np.load(Path(__file__).parent / "golden" / "beyond.npz")


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[f"grpo_{name}"]))


@pytest.mark.parametrize(
    ("scale", "name"), [("none", "adv_none"), ("group", "adv_std_unbiased"), ("batch", "adv_std_batch")]
)
def test_advantages_are_those_of_the_golden_arrays(scale: Scale, name: str) -> None:
    """Row 2 is a tie, which no deviation may blow up; row 3 is a verifier's reward."""
    rewards = golden("rewards")
    advantages = group_advantages(rewards.flatten(), 6, scale).view(4, 6)
    torch.testing.assert_close(advantages, golden(name), rtol=1e-9, atol=1e-12)
    assert (advantages[2] == 0).all()


def test_advantages_worked_by_hand() -> None:
    rewards = torch.tensor([1.0, 2, 3, 6])
    torch.testing.assert_close(group_advantages(rewards, 4, "none"), torch.tensor([-2.0, -1, 0, 3]))
    expected = torch.tensor([-0.926, -0.463, 0, 1.389])
    torch.testing.assert_close(group_advantages(rewards, 4, "group"), expected, rtol=0, atol=5e-4)
    assert (group_advantages(rewards[:1], 1, "group") == 0).all()  # the budget's last image has no group


def test_two_groups_of_one_prompt_do_not_mix() -> None:
    """Pooled, the first group would have only negative advantages."""
    rewards = torch.tensor([1.0, 2, 3, 6, 10, 11, 12, 15])
    first, second = group_advantages(rewards, 4, "group").split(4)
    torch.testing.assert_close(first, second)


def test_a_shared_tie_of_rounded_rewards_stays_a_tie() -> None:
    rewards = torch.tensor([0.1 + 0.2, 0.3, 0.3, 0.3 + 1e-8, 1.0, 2.0, 1.0, 2.0])
    advantages = group_advantages(rewards, 4, "group")
    assert (advantages[:4] == 0).all() and (advantages[4:].abs() > 0.8).all()


def as_latents(name: str) -> Tensor:
    """``[8, 12]`` as 8 latents of 12 channels."""
    return golden(name)[..., None, None]


def test_surrogate_and_guard_are_those_of_the_golden_arrays() -> None:
    """In units of the mean over dimensions; the golden gradient is central differences'."""
    mean = as_latents("mu").requires_grad_()
    new, old = (Transition(m, golden("sigma").view(-1, 1, 1, 1)) for m in (mean, as_latents("mu_old")))
    x_next = as_latents("x_next")
    log_ratio = (new.log_prob(x_next) - old.log_prob(x_next)) / 12
    torch.testing.assert_close(log_ratio.detach(), golden("log_ratio"), rtol=1e-9, atol=1e-12)
    loss = clipped_surrogate(log_ratio.exp(), golden("advantage"), golden("clip").item())
    torch.testing.assert_close(loss.detach(), golden("loss"), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(loss.sum(), mean)
    torch.testing.assert_close(gradient, as_latents("loss_grad_mu"), rtol=1e-9, atol=1e-12)
    guarded = guarded_log_ratio(new, x_next, old.mean) / 12
    torch.testing.assert_close(guarded.detach(), golden("guard_log_ratio"), rtol=1e-9, atol=1e-12)


def build(*, steps: int = 3, seed: int = 0, left: int = 10**9, policy: ToyPolicy | None = None, **changes: Any) -> GRPO:
    params = {
        "samples_per_epoch": 64, "images_per_prompt": 8, "lr": 0.03, "clip_range": 0.2, "log_prob_reduction": "sum",
        "skip_last_steps": 0, **changes,
    }  # fmt: skip
    return GRPO(context(policy or ToyPolicy(steps), seed=seed, proxy=ToyProxy(left)), GRPOParams(**params))


def first_gradient(algorithm: GRPO) -> Tensor:
    policy: Any = algorithm.ctx.policy
    seen: list[Tensor] = []
    algorithm.updater.optimizer.max_grad_norm = 1e9
    algorithm.updater.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    algorithm.step()
    return seen[0]


def test_guard_worked_by_hand() -> None:
    """Deviation 0.5, mean moved from 0 to 0.1, noise 0.6: log-ratio 0.10, guarded 0.06."""
    policy = ToyPolicy(steps=1, dimensions=1)
    with torch.no_grad():
        policy.shift += 0.1
    x, x_next, step = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.3), torch.zeros(1, dtype=torch.long)
    old = Transition(torch.zeros(1, 1, 1, 1), torch.tensor([[[[0.5]]]]))
    updater = build(policy=policy).updater
    for means_old, log_ratio in ((None, 0.10), (old.mean[:, None], 0.06)):
        policy.shift.data.fill_(0.1)
        latents = torch.stack([x, x_next], 1)
        row = updater.step(latents, step, step, ["ant"], old.log_prob(x_next), torch.ones(1), means_old=means_old)
        assert row[PolicyUpdater.METRICS.index("ratio/mean")] == pytest.approx(math.exp(log_ratio), rel=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_guard_scales_the_first_gradient_by_the_deviation(reduction: str) -> None:
    """At the sampling policy the recentring is 0, and the toy's steps all have deviation 0.5."""
    plain, guard = (first_gradient(build(ratio=r, log_prob_reduction=reduction)) for r in ("plain", "guard"))
    torch.testing.assert_close(guard, 0.5 * plain, rtol=1e-4, atol=1e-6)


def test_guard_compares_with_the_policy_that_sampled() -> None:
    """Also in the second update, when the policy has moved: the ratio is then no longer 1."""
    algorithm = build(ratio="guard", updates_per_epoch=2)
    rows: list[list[float]] = []
    step = algorithm.updater.step
    algorithm.updater.step = lambda *a, **k: rows.append(step(*a, **k)) or rows[-1]
    algorithm.step()
    assert len(rows) == 2
    first, second = (row[PolicyUpdater.METRICS.index("approx_kl")] for row in rows)
    assert first == 0 and second > 0


def test_window_of_all_steps_is_no_window() -> None:
    whole, window = (first_gradient(build(updates_per_epoch=1, window=w)) for w in (None, 3))
    torch.testing.assert_close(window, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_window_alone_has_noise_and_gradient(ratio: str) -> None:
    algorithm = build(steps=5, window=2, ratio=ratio, updates_per_epoch=1)
    spy = Spy(algorithm, "draw_steps")
    rollout, etas = algorithm.ctx.policy.rollout, []
    algorithm.ctx.policy.rollout = lambda *a, eta, **k: etas.append(eta) or rollout(*a, eta=eta, **k)
    gradient = first_gradient(algorithm)
    inside = gradient.abs().sum(1) > 0
    assert len(spy.calls) == 1 and inside.sum() == 2 and inside[:4].any()
    assert torch.equal(etas[0] > 0, inside) and (etas[0][inside] == 1).all()


def test_windows_start_in_the_first_half_and_hold_no_skipped_step() -> None:
    starts = Counter(tuple(build(steps=10, window=3, seed=s).draw_steps().tolist()) for s in range(200))
    assert set(starts) == {(k, k + 1, k + 2) for k in range(5)}
    algorithm = build(steps=5, window=3, skip_last_steps=2)
    assert [algorithm.draw_steps().tolist() for _ in range(3)] == [[0, 1, 2]] * 3
    assert build(steps=5, window=9, skip_last_steps=1).draw_steps().tolist() == [0, 1, 2, 3]
    assert build(steps=5, skip_last_steps=1).draw_steps().tolist() == [0, 1, 2, 3]
    assert GRPO.cost(GRPOParams(window=2, ratio="guard"), 5) == ImageCost(trained=2)
    assert GRPO.cost(GRPOParams(), 5) == ImageCost(trained=4)


class Linear(ToyProxy):
    """The pixel itself."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images[:, 0, 0, 0]


def test_one_update_is_reinforce_with_the_groups_baseline() -> None:
    """Reward x = theta + 0.5 z, true gradient 1: the baseline that holds the image itself costs a factor (K - 1) / K."""
    policy = ToyPolicy(steps=1, dimensions=1)
    params = GRPOParams(
        samples_per_epoch=40_000, images_per_prompt=4, updates_per_epoch=1, log_prob_reduction="sum", advantage_scale="none",
        skip_last_steps=0,
    )  # fmt: skip
    gradient = first_gradient(GRPO(context(policy, proxy=Linear()), params))
    assert -gradient.item() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize("changes", [{}, {"ratio": "guard"}, {"window": 1}, {"window": 2, "ratio": "guard"}])
def test_bandit_is_solved(changes: dict[str, Any]) -> None:
    """Reward -(image - 1)^2 with fixed noise: the optimum is a mean image of exactly 1."""
    algorithm = build(**changes)
    for _ in range(100):
        algorithm.step()
    with torch.no_grad():
        images = algorithm.ctx.policy.rollout(["ant"] * 4000, torch.Generator().manual_seed(9)).images
    assert images.mean().item() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("ratio", ["plain", "guard"])
def test_micro_batches_change_nothing(ratio: str) -> None:
    ends = []
    for micro in (7, 512):
        algorithm = build(ratio=ratio, window=2)
        algorithm.updater.micro_batch = micro
        algorithm.step()
        ends.append(algorithm.ctx.policy.shift.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


def test_budget_is_never_overspent() -> None:
    algorithm = build(left=133)  # two rounds of 64, then less than a group
    proxy: Any = algorithm.ctx.proxy
    while proxy.left:
        algorithm.step()


def test_state_goes_on_bit_for_bit() -> None:
    whole = build(window=2, ratio="guard")
    whole.step(), whole.step()
    policy: Any = whole.ctx.policy
    state = copy.deepcopy(
        (whole.state_dict(), policy.state_dict(), [g.get_state() for g in whole.ctx.generators.values()])
    )
    expected = whole.step()
    other = build(seed=5, window=2, ratio="guard")
    other_policy: Any = other.ctx.policy
    other.load_state_dict(state[0]), other_policy.load_state_dict(state[1])
    for generator, draws in zip(other.ctx.generators.values(), state[2], strict=True):
        generator.set_state(draws)
    assert other.step() == expected
    assert torch.equal(other_policy.shift, policy.shift)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"window": 2, "ratio": "guard"}])
def test_reward_rises_on_the_mini_network(changes: dict[str, Any]) -> None:
    before, after = climb(
        GRPO, 2, samples_per_epoch=64, images_per_prompt=32, lr=1e-2, updates_per_epoch=4, clip_range=0.2,
        log_prob_reduction="sum", **changes,
    )  # fmt: skip
    assert after > before + 0.02
