"""What one update does: clipping, metrics, estimators, truncation, the budget's last round, and best-of-n's pool."""

from __future__ import annotations

import copy
import math
from collections import Counter
from statistics import NormalDist
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from toy_policy import PROMPTS, Spy, ToyPolicy, ToyProxy, context

from overopt_bench.algorithms.alignprop import AlignProp
from overopt_bench.algorithms.best_of_n import BestOfN
from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.ppo import draw_epoch_prompts
from overopt_bench.compute.optimizer import Optimizer


def ddpo(*, policy: ToyPolicy | None = None, left: int = 10**9, **params: Any) -> DDPO:
    return DDPO(context(policy or ToyPolicy(), proxy=ToyProxy(left)), DDPO.Params(**params))


def gradients(optimizer: Optimizer, policy: ToyPolicy) -> list[Tensor]:
    seen: list[Tensor] = []
    optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    return seen


def test_update_reports_what_it_saw() -> None:
    """One dimension, std 1/2, mean moved by 0.1: the log-ratio is known, (0.2 z - 0.02) with z = noise."""
    policy = ToyPolicy(steps=1, dimensions=1)
    z = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    x, x_next = torch.zeros(4, 1, 1, 1), (z / 2).view(-1, 1, 1, 1)
    step = torch.zeros(4, dtype=torch.long)
    old = policy.transition(x, step, ["ant"] * 4).log_prob(x_next).detach()
    with torch.no_grad():
        policy.shift += 0.1
    updater = ddpo(policy=policy, clip_range=0.2, log_prob_reduction="sum").updater
    loss, ratio, clipfrac, approx_kl, _ = updater.step(
        torch.stack([x, x_next], 1), torch.arange(4), step, ["ant"] * 4, old, torch.ones(4)
    )
    log_ratio = 0.2 * z - 0.02
    assert ratio == pytest.approx(log_ratio.exp().mean().item(), rel=1e-5)
    assert approx_kl == pytest.approx((log_ratio.exp() - 1 - log_ratio).mean().item(), rel=1e-4)
    assert clipfrac == 0.25 and approx_kl > 0  # e^-0.22 = 0.803 and e^0.18 = 1.197 stay inside, e^0.38 does not
    assert loss == pytest.approx(-(log_ratio.exp().clamp(max=1.2)).mean().item(), rel=1e-5)


def test_record_tells_steps_and_updates_apart() -> None:
    """As above for each step: its log-ratios are 0.2 z - 0.02 once its mean has moved by 0.1, and 0 before."""
    policy = ToyPolicy(steps=3, dimensions=1)
    z = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    latents = torch.stack([0 * z, z / 2, 0.75 * z, z], 1).view(4, 4, 1, 1, 1)  # x' = x / 2 + z / 2 in steps 0 and 1
    sample, step = torch.arange(4).repeat(2), torch.tensor([0] * 4 + [1] * 4)  # step 2 is not trained
    old = policy.transition(latents[sample, step], step, ["ant"] * 8).log_prob(latents[sample, step + 1]).detach()
    updater = ddpo(policy=policy, clip_range=0.2, log_prob_reduction="sum", lr=1e-9).updater
    for moved in ([0.0, 0.1, 0.0], [0.1, 0.1, 0.0]):
        policy.shift.data = torch.tensor(moved).view(3, 1)
        updater.step(latents, sample, step, ["ant"] * 8, old, torch.ones(8))
    summary = updater.take_summary()
    log_ratio = 0.2 * z - 0.02
    kl = (log_ratio.exp() - 1 - log_ratio).mean().item()
    for name, of_moved in (("clipfrac", 0.25), ("approx_kl", kl)):
        expected = {"": 3 / 4, "/first": 1 / 2, "/last": 1, "/step0": 1 / 2, "/step1": 1}
        found = {key.removeprefix(name): value for key, value in summary.items() if key.startswith(name)}
        assert found == pytest.approx({key: share * of_moved for key, share in expected.items()}, rel=1e-3, abs=1e-6)
    assert summary["optimizer_steps"] == 2


def test_reinforce_is_the_score_function() -> None:
    """-mean A (x' - mu) / std^2, by hand; no ratio and no clipping, however far the old policy is."""
    policy = ToyPolicy()
    algorithm = ddpo(policy=policy, estimator="reinforce", log_prob_reduction="sum", lr=1e-9, max_grad_norm=1e9)
    seen = gradients(algorithm.updater.optimizer, policy)
    chain = policy.rollout(["ant"] * 8, torch.Generator().manual_seed(0))
    advantages = torch.linspace(-1, 2, 8)
    step = torch.ones(8, dtype=torch.long)
    x, x_next = chain.latents[:, 1], chain.latents[:, 2]
    algorithm.updater.step(chain.latents, torch.arange(8), step, ["ant"] * 8, chain.log_probs[:, 1] - 5, advantages)
    expected = -(advantages[:, None] * (x_next - x / 2).flatten(1) / 0.25).mean(0)
    torch.testing.assert_close(seen[0], torch.stack([torch.zeros(2), expected]), rtol=1e-5, atol=1e-6)


def test_reinforce_updates_once_an_epoch() -> None:
    """After an update the samples are off-policy, and the score function has no ratio to correct for it."""
    algorithm = ddpo(estimator="reinforce", samples_per_epoch=16)
    assert algorithm.step()["optimizer_steps"] == 1
    assert ddpo(samples_per_epoch=16).step()["optimizer_steps"] > 1
    with pytest.raises(ValidationError, match="must be 1 with estimator=reinforce"):
        DDPO.Params(estimator="reinforce", inner_epochs=2)


def test_advantages_are_clipped_at_the_loss_only() -> None:
    algorithm = ddpo(advantage_clip=0.5, samples_per_epoch=64)
    spy = Spy(algorithm.updater, "step")
    metrics = algorithm.step()
    advantages = spy.joined(5)
    assert advantages.min() == -0.5 and advantages.max() == 0.5 and (advantages.abs() < 0.5).any()
    assert metrics["advantage_spread"] > 0.5


@pytest.mark.parametrize("name", ["ddpo", "alignprop"])
def test_gradient_norm_is_clipped_and_reported_unclipped(name: str) -> None:
    policy = ToyPolicy()
    if name == "ddpo":
        algorithm: Any = ddpo(policy=policy, max_grad_norm=0.01, updates_per_epoch=1)
        optimizer = algorithm.updater.optimizer
    else:
        algorithm = AlignProp(context(policy), AlignProp.Params(max_grad_norm=0.001))
        optimizer = algorithm.optimizer
    seen = gradients(optimizer, policy)
    metrics = algorithm.step()
    assert seen[0].norm().item() == pytest.approx(algorithm.params.max_grad_norm, rel=1e-3)
    assert metrics["grad_norm"] > 2 * algorithm.params.max_grad_norm


def test_skipped_last_steps_get_no_gradient() -> None:
    policy = ToyPolicy(steps=3)
    algorithm = ddpo(policy=policy, skip_last_steps=1)
    seen = gradients(algorithm.updater.optimizer, policy)
    algorithm.step()
    assert all((g[:2] != 0).all() and (g[2] == 0).all() for g in seen)
    assert ddpo(policy=ToyPolicy(steps=3), skip_last_steps=9).updater.trained_steps == 1


def test_rounds_are_groups_until_the_budget_is_spent() -> None:
    """44 queries after the first round: two groups of 16, then a last group of the 12 that are left."""
    ctx = context(ToyPolicy(), proxy=ToyProxy(300))
    sizes = []
    while ctx.budget_left():
        prompts = draw_epoch_prompts(ctx, 256, 16)
        assert all(n % min(16, len(prompts)) == 0 for n in Counter(prompts).values())
        ctx.proxy(torch.zeros(len(prompts), 3, 1, 1), prompts)
        sizes.append(len(prompts))
    assert sizes == [256, 32, 12]


def test_statistics_that_can_never_be_used_are_refused() -> None:
    for params in ({"stats_buffer": 8}, {"stats_min_count": 64}):
        with pytest.raises(ValidationError, match="must be at least stats_min_count"):
            DDPO.Params(**params)


def test_alignprop_towards_a_target_turns_around_behind_it() -> None:
    gradient = []
    for target in (-1e3, 1e3):
        policy = ToyPolicy()
        algorithm = AlignProp(context(policy), AlignProp.Params(loss="target", target=target, max_grad_norm=1e9))
        seen = gradients(algorithm.optimizer, policy)
        metrics = algorithm.step()
        assert metrics["loss"] == pytest.approx(0.01 * abs(metrics["proxy/mean"] - target), rel=1e-4)
        gradient.append(seen[0])
    maximise = ToyPolicy()
    algorithm = AlignProp(context(maximise), AlignProp.Params(max_grad_norm=1e9))
    seen = gradients(algorithm.optimizer, maximise)
    algorithm.step()
    torch.testing.assert_close(gradient[0], -gradient[1])
    torch.testing.assert_close(gradient[1], seen[0])  # below the target, L1 is plain maximisation


@pytest.mark.parametrize("truncation", ["random", "normal"])
def test_truncation_is_drawn_from_its_distribution(truncation: str) -> None:
    algorithm = AlignProp(context(ToyPolicy(steps=50)), AlignProp.Params(truncation=truncation))
    n = 10_000
    drawn = Counter(algorithm.draw_grad_steps() for _ in range(n))
    if truncation == "random":
        exact = {k: 1 / 50 for k in range(1, 51)}
    else:  # K = int(N(42, 5)), redrawn unless 1 <= K < 50; T - K steps keep their gradient
        below = [NormalDist(42, 5).cdf(k) for k in range(51)]
        exact = {50 - k: (below[k + 1] - below[k]) / (below[50] - below[1]) for k in range(1, 50)}
    assert drawn.keys() <= exact.keys()
    for k, p in exact.items():
        assert abs(drawn[k] / n - p) < 5 * (p * (1 - p) / n) ** 0.5 + 1 / n, k


def test_a_truncation_outside_the_chain_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two steps int(1.68 + 0.2 z) is -2, 0, 2 and then 1 for these z; only the last keeps a step with a gradient."""
    algorithm = AlignProp(context(ToyPolicy(steps=2)), AlignProp.Params(truncation="normal"))
    draws = iter([-20.0, -4.0, 2.0, 0.0])
    monkeypatch.setattr(torch, "randn", lambda *size, generator: torch.full(size, next(draws)))
    assert algorithm.draw_grad_steps() == 1 and next(draws, None) is None


def test_one_truncation_needs_a_policy_of_more_than_one_step() -> None:
    algorithm = AlignProp(context(ToyPolicy(steps=1)), AlignProp.Params(truncation="normal"))
    assert algorithm.draw_grad_steps() == 1 and math.isfinite(algorithm.step()["loss"])


def test_best_of_n_hands_over_every_scored_image() -> None:
    """Round robin over the prompts, pixels rounded to uint8, and the rounds go on after a restart."""
    ctx = context(ToyPolicy(), proxy=ToyProxy(18))

    class Bright(ToyPolicy):
        def decode(self, latents: Tensor) -> Tensor:
            return torch.sigmoid(super().decode(latents))

    ctx.policy = Bright()
    algorithm = BestOfN(ctx, BestOfN.Params(samples_per_round=7))
    noise = copy.deepcopy(ctx.generators["sampling"])
    expected = [Bright().rollout(["ant"] * n, noise).images for n in (7, 7, 4)]
    algorithm.step()
    rounds, chosen = [algorithm.candidates()], [algorithm.n]
    resumed = BestOfN(ctx, BestOfN.Params(samples_per_round=7, selected_per_prompt=2))
    resumed.load_state_dict(copy.deepcopy(algorithm.state_dict()))
    while ctx.budget_left():
        resumed.step()
        rounds.append(resumed.candidates())
        chosen.append(resumed.n)
    # 18 samples leave the smallest of four pools with 4: two selections of two
    assert chosen == [1, 1, 2]
    assert tuple(p for one in rounds for p in one.prompts) == tuple(PROMPTS[k % 4] for k in range(18))
    pixels, images = torch.cat([one.images for one in rounds]), torch.cat(expected)
    assert pixels.dtype == torch.uint8 and torch.equal(pixels, (images * 255).round().to(torch.uint8))
    torch.testing.assert_close(torch.cat([one.proxy for one in rounds]), -((images[:, 0, 0, 0] - 1) ** 2))
