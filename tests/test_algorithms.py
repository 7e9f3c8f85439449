"""The algorithms' mathematics on a toy whose gradients and optimum are known."""

from __future__ import annotations

import copy
from itertools import combinations
from typing import Any

import pytest
import torch
from toy_policy import PROMPTS, ToyPolicy, context

from overopt_bench.algorithms.alignprop import AlignProp
from overopt_bench.algorithms.best_of_n import best_of_n_kl, best_of_n_weights
from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.ppo import PerPromptStats, clipped_surrogate, zero_spread_share
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.algorithms.tdpo_r import TDPOR
from overopt_bench.types import Algorithm, Trajectory

SMALL_CRITIC = {"critic_hidden": (8, 4), "probe_size": 16}
SETTINGS: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "ddpo": (DDPO, {"lr": 0.03, "clip_range": 0.2, "log_prob_reduction": "sum"}),
    "reinforce": (DDPO, {"lr": 0.03, "estimator": "reinforce", "log_prob_reduction": "sum"}),
    "alignprop": (AlignProp, {"lr": 0.03, "loss_coefficient": 1.0}),
    "draft_1": (AlignProp, {"lr": 0.03, "loss_coefficient": 1.0, "truncation": "fixed"}),
    "tdpo": (TDPO, {"lr": 0.02, "clip_range": 0.2, "log_prob_reduction": "sum", **SMALL_CRITIC}),
    "tdpo_r": (TDPOR, {"lr": 0.02, "clip_range": 0.2, "log_prob_reduction": "sum", "reset_period": 20, **SMALL_CRITIC}),
}


def build(name: str, *, policy: ToyPolicy | None = None, seed: int = 0, micro_batch: int = 128, **changes: Any) -> Any:
    cls, params = SETTINGS[name]
    ctx = context(policy or ToyPolicy(), seed=seed)
    ctx.micro_batch = micro_batch
    return cls(ctx, cls.Params(**{**params, **changes}))


@pytest.mark.parametrize("name", SETTINGS)
def test_bandit_is_solved(name: str) -> None:
    """Reward -(image - 1)^2 with fixed noise: the optimum is a mean image of exactly 1."""
    algorithm = build(name)
    torch.manual_seed(0)
    for _ in range(80):
        algorithm.step()
    policy = algorithm.ctx.policy
    with torch.no_grad():
        images = policy.rollout(["ant"] * 4000, torch.Generator().manual_seed(9)).images
    assert images.mean().item() == pytest.approx(1.0, abs=0.15)


def test_ratio_is_one_on_the_first_pass() -> None:
    algorithm = build("ddpo", updates_per_epoch=1)
    metrics = algorithm.step()
    assert metrics["ratio/mean"] == pytest.approx(1.0, abs=1e-6) and metrics["clipfrac"] == 0
    assert metrics["optimizer_steps"] == 1


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_ddpo_gradient_is_that_of_the_clipped_surrogate(reduction: str) -> None:
    """Autograd against central differences, at parameters where some ratios are clipped and others are not."""
    policy = ToyPolicy(dtype=torch.float64)
    chain = policy.rollout(["ant"] * 32, torch.Generator().manual_seed(0))
    advantages = torch.randn(32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample, step = torch.arange(32).repeat_interleave(2), torch.arange(2).repeat(32)
    x, x_next = chain.latents[sample, step], chain.latents[sample, step + 1]
    d = 2 if reduction == "mean" else 1

    def surrogate() -> torch.Tensor:
        log_prob = policy.transition(x, step, ["ant"] * 64).log_prob(x_next)
        ratio = ((log_prob - chain.log_probs[sample, step]) / d).exp()
        return clipped_surrogate(ratio, advantages[sample], 0.2).mean()

    with torch.no_grad():
        policy.shift += torch.tensor([[0.1, -0.05], [0.15, 0.1]], dtype=torch.float64)
    algorithm = build("ddpo", policy=policy, lr=1e-9, clip_range=0.2, log_prob_reduction=reduction, max_grad_norm=1e9)
    seen: list[torch.Tensor] = []
    algorithm.updater.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    algorithm.updater.step(chain.latents, sample, step, ["ant"] * 64, chain.log_probs[sample, step], advantages[sample])
    for index in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        h = 1e-6
        with torch.no_grad():
            policy.shift[index] += h
            up = surrogate()
            policy.shift[index] -= 2 * h
            down = surrogate()
            policy.shift[index] += h
        assert seen[0][index].item() == pytest.approx(((up - down) / (2 * h)).item(), rel=1e-4, abs=1e-6)


def test_clipping_is_pessimistic() -> None:
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(clipped_surrogate(ratio, advantages, 0.2), torch.tensor([-1.2, 1.5, -0.5, 0.8]))


@pytest.mark.parametrize("name", ["ddpo", "tdpo"])
def test_micro_batch_changes_nothing(name: str) -> None:
    ends = []
    for micro in (7, 512):
        torch.manual_seed(0)
        algorithm = build(name, micro_batch=micro)
        algorithm.step()
        ends.append(algorithm.ctx.policy.shift.detach().clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("micro", [7, 64])
def test_micro_batch_of_alignprop_changes_no_gradient(micro: int) -> None:
    """With images shift_k * (1, 2, ..., 64), drawn in parts, the gradient of the mean reward is known."""
    policy = ToyPolicy()
    algorithm = build("alignprop", policy=policy, batch_size=64, micro_batch=micro, lr=1e-9, max_grad_norm=1e9)
    policy.draw_noise = lambda n, generator: torch.arange(1.0, 65).expand(3, 64)
    drawn: list[int] = []

    def rollout_from(noise: torch.Tensor, prompts: list[str], **_: Any) -> Trajectory:
        assert len(prompts) == noise.shape[1] <= micro
        drawn.extend(noise[0].int().tolist())
        empty = torch.empty(0)
        return Trajectory(
            tuple(prompts), empty, empty, empty, (policy.shift.sum() * noise[0]).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
        )

    policy.rollout_from = rollout_from
    seen: list[torch.Tensor] = []
    algorithm.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    algorithm.step()
    assert sorted(drawn) == list(range(1, 65))
    expected = -2 * torch.arange(1.0, 65).mean().item()  # d/ds mean (s k - 1)^2 at s = 0
    torch.testing.assert_close(seen[0], torch.full((2, 2), expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("micro", [5, 128])
@pytest.mark.parametrize(("group", "draws"), [(8, 3), (20, 1), (1, 20)])
def test_alignprop_draws_a_truncation_for_each_group(group: int, draws: int, micro: int) -> None:
    """Each image's gradient is truncated after its own group's K: K = 1, 2, 1, ... for groups of 20 images."""
    policy = ToyPolicy()
    algorithm = build(
        "alignprop", policy=policy, truncation_group=group, batch_size=20, micro_batch=micro, lr=1e-9, max_grad_norm=1e9
    )
    drawn: list[int] = []
    algorithm.draw_grad_steps = lambda: drawn.append(1 + len(drawn) % 2) or drawn[-1]
    seen: list[torch.Tensor] = []
    algorithm.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    noise = copy.deepcopy(algorithm.ctx.generators["sampling"])
    row = algorithm.step()
    assert len(drawn) == draws
    images = policy.rollout(["ant"] * 20, noise).images[:, 0, 0, 0].detach()
    slope = 2 * (images - 1)  # of -reward
    both = torch.tensor([drawn[k // group] == 2 for k in range(20)])
    expected = torch.tensor([[(slope * both).mean() / 4] * 2, [slope.mean() / 2] * 2])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)
    assert row["grad_steps"] == pytest.approx(1 + both.double().mean().item())


@pytest.mark.parametrize("steps", [1, 2])
def test_alignprop_gradient_is_truncated_autograd(steps: int) -> None:
    """d image / d shift_1 = 1/2 a dimension and d image / d shift_0 = 1/4, the latter only with both steps."""
    policy = ToyPolicy()
    algorithm = build(
        "alignprop", policy=policy, truncation="fixed", grad_steps=steps, lr=1e-9, max_grad_norm=1e9, batch_size=16
    )
    seen: list[torch.Tensor] = []
    algorithm.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    noise = copy.deepcopy(algorithm.ctx.generators["sampling"])
    algorithm.step()
    images = policy.rollout(["ant"] * 16, noise).images[:, 0, 0, 0].detach()
    slope = (2 * (images - 1)).mean().item()
    expected = torch.tensor([[slope / 4] * 2 if steps == 2 else [0.0, 0.0], [slope / 2] * 2])
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_per_prompt_stats_by_definition() -> None:
    stats = PerPromptStats(buffer_size=3, min_count=3)
    first = stats.update(["a", "a", "b"], torch.tensor([1.0, 3.0, 8.0]))
    torch.testing.assert_close(first, (torch.tensor([1.0, 3, 8]) - 4) / torch.tensor([1.0, 3, 8]).std(unbiased=False))
    second = stats.update(["a", "a"], torch.tensor([5.0, 7.0]))  # a's buffer is now 3, 5, 7: the 1 fell out
    known = torch.tensor([3.0, 5, 7])
    torch.testing.assert_close(second, (torch.tensor([5.0, 7]) - 5) / known.std(unbiased=False), rtol=1e-4, atol=1e-5)
    again = PerPromptStats(3, 3)
    again.load_state_dict(stats.state_dict())
    torch.testing.assert_close(again.update(["a"], torch.tensor([1.0])), stats.update(["a"], torch.tensor([1.0])))


def test_prompts_without_spread_are_counted() -> None:
    assert zero_spread_share(torch.tensor([0.0, 0, -1, 1, 0.5, 0]), ["a", "a", "b", "b", "c", "d"]) == 0.5


def test_every_transition_is_used_once() -> None:
    batches = build("ddpo", updates_per_epoch=3).batches(20)
    pairs = [(int(s), int(t)) for sample, step in batches for s, t in zip(sample, step, strict=True)]
    assert len(batches) == 3
    assert sorted(pairs) == [(s, t) for s in range(20) for t in range(2)]


def test_tdpo_updates_per_timestep_at_mixed_noise_levels() -> None:
    algorithm = build("tdpo", policy=ToyPolicy(steps=4), samples_per_epoch=20, batch_size=16)
    batches = algorithm.batches(20)
    assert len(batches) == 4 * 2
    assert all(len(set(sample.tolist())) == len(sample) for sample, _ in batches)
    assert any(len(set(step.tolist())) > 1 for _, step in batches)
    pairs = sorted((int(s), int(t)) for sample, step in batches for s, t in zip(sample, step, strict=True))
    assert pairs == [(s, t) for s in range(20) for t in range(4)]
    assert algorithm.step()["optimizer_steps"] == 8


def test_tdpo_r_without_reset_is_tdpo() -> None:
    ends = []
    for name, changes in (("tdpo", {}), ("tdpo_r", {"reset": "none"})):
        torch.manual_seed(0)
        algorithm = build(name, **changes)
        for _ in range(6):
            algorithm.step()
        ends.append(algorithm.ctx.policy.shift.detach().clone())
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_state_goes_on_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    whole = build(name, **({"reset_period": 8} if name == "tdpo_r" else {}))
    for _ in range(3):
        whole.step()
    state, shift = copy.deepcopy(whole.state_dict()), whole.ctx.policy.shift.detach().clone()
    draws = {k: g.get_state() for k, g in whole.ctx.generators.items()}
    dropout = torch.get_rng_state()
    whole.step()

    other = build(name, seed=5, **({"reset_period": 8} if name == "tdpo_r" else {}))
    other.load_state_dict(state)
    with torch.no_grad():
        other.ctx.policy.shift.copy_(shift)
    for k, g in other.ctx.generators.items():
        g.set_state(draws[k])
    torch.set_rng_state(dropout)
    other.step()
    torch.testing.assert_close(other.ctx.policy.shift, whole.ctx.policy.shift, rtol=0, atol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_budget_is_never_overspent(name: str) -> None:
    algorithm = build(name)
    algorithm.ctx.proxy.left = 300  # not a multiple of any batch; the proxy fails when overspent
    while algorithm.ctx.proxy.left:
        algorithm.step()


def test_best_of_n_is_the_mean_over_all_subsets() -> None:
    gold = torch.tensor([3.0, -1, 4, 1, -5, 9])  # in order of a proxy, ascending
    for n in range(1, 7):
        best = [gold[max(subset)].item() for subset in combinations(range(6), n)]
        assert (best_of_n_weights(6, n) * gold).sum().item() == pytest.approx(sum(best) / len(best), rel=1e-5)
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(0.6363, abs=1e-4)
    with pytest.raises(ValueError, match=r"1\.\.6"):
        best_of_n_weights(6, 7)


def test_toy_prompts_are_groups() -> None:
    prompts = build("ddpo").ctx.draw_prompts(8, 4)
    assert set(prompts) <= set(PROMPTS) and prompts[:4] == [prompts[0]] * 4
