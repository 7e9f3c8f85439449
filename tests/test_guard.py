"""GRPO-Guard's ratio in every algorithm that has a ratio: its gradient, and whose means it compares with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from toy_policy import ToyPolicy, context

from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.grpo import GRPO
from overopt_bench.algorithms.ppo import clipped_surrogate
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.algorithms.tdpo_r import TDPOR
from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite

CRITIC = {"batch_size": 8, "critic_hidden": (8, 4), "probe_size": 16}
ALGORITHMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddpo": (DDPO, {"updates_per_epoch": 2}),
    "tdpo": (TDPO, CRITIC),
    "tdpo_r": (TDPOR, {**CRITIC, "reset_period": 1}),
    "grpo": (GRPO, {"images_per_prompt": 4, "updates_per_epoch": 2, "skip_last_steps": 0}),
}


def build(name: str, policy: ToyPolicy | None = None, **changes: Any) -> Any:
    cls, params = ALGORITHMS[name]
    common = {"samples_per_epoch": 16, "clip_range": 0.2, "log_prob_reduction": "sum", "max_grad_norm": 1e9, "lr": 0.03}
    return cls(context(policy or ToyPolicy(steps=3)), cls.Params(**{**common, **params, **changes}))


def gradients(algorithm: Any) -> list[torch.Tensor]:
    policy, seen = algorithm.ctx.policy, []
    algorithm.updater.optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(policy.shift.grad.clone()))
    return seen


@pytest.mark.parametrize("name", ALGORITHMS)
def test_first_gradient_is_the_plain_one_times_the_deviation(name: str) -> None:
    """At the sampling policy the recentring is 0 and nothing is clipped; the toy's steps all have deviation 0.5."""
    first = []
    for ratio in ("plain", "guard"):
        algorithm = build(name, ratio=ratio)
        seen = gradients(algorithm)
        row = algorithm.step()
        first.append(seen[0])
        assert row["approx_kl/first"] < 1e-9 < row["approx_kl/last"]  # later updates are compared with what sampled
    torch.testing.assert_close(first[1], 0.5 * first[0], rtol=1e-4, atol=1e-6)
    assert first[0].abs().max() > 0.01


@pytest.mark.parametrize("name", ["ddpo", "tdpo"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_is_that_of_the_clipped_surrogate(name: str, reduction: str) -> None:
    """Against central differences of z . (mean - mean_old), at parameters where some ratios are clipped and others not."""
    policy = ToyPolicy(dtype=torch.float64)
    algorithm = build(name, policy, ratio="guard", log_prob_reduction=reduction, lr=1e-9, clip_range=0.05)
    prompts = ["ant"] * 32
    chain = policy.rollout(prompts, torch.Generator().manual_seed(0), with_means=True)
    advantages = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sample, step = torch.arange(32).repeat_interleave(2), torch.arange(2).repeat(32)
    before = policy.shift.detach().clone()
    z = (chain.latents[sample, step + 1] - chain.latents[sample, step] / 2 - before[step][..., None, None]) / 0.5
    d = 2 if reduction == "mean" else 1
    with torch.no_grad():
        policy.shift += torch.tensor([[0.1, -0.05], [0.15, 0.1]], dtype=torch.float64)

    def surrogate(shift: torch.Tensor) -> torch.Tensor:
        ratio = ((z * (shift - before)[step][..., None, None]).flatten(1).sum(1) / d).exp()
        return clipped_surrogate(ratio, advantages, 0.05).mean()

    at = policy.shift.detach().clone()
    seen = gradients(algorithm)
    old = chain.log_probs[sample, step]
    row = algorithm.updater.step(
        chain.latents, sample, step, prompts * 2, old, advantages, means_old=chain.means
    )  # fmt: skip
    assert row[0] == pytest.approx(surrogate(at).item(), rel=1e-6) and 0.1 < row[2] < 0.9
    for index in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        h = torch.zeros_like(at)
        h[index] = 1e-6
        slope = ((surrogate(at + h) - surrogate(at - h)) / 2e-6).item()
        assert seen[0][index].item() == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_score_function_has_no_ratio_to_guard() -> None:
    with pytest.raises(ValidationError, match="must be importance with ratio=guard"):
        DDPO.Params(estimator="reinforce", ratio="guard")


@torch.no_grad()
def test_means_are_kept_at_no_pass() -> None:
    """Of every step, also without noise; the same chains, and as many U-Net evaluations as without."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=3, guidance_scale=1.5, eta=1.0, lora_rank=2, lora_alpha=2, seed=0,
        runtime=Runtime(device="cpu"),
    )  # fmt: skip
    prompts, passes, chains = ["fox face", "cat", "dog face"], [], []
    policy.micro_batch = 2
    eta = policy.schedule.eta.clone()
    eta[-1] = 0
    for with_means in (False, True):
        before = policy.nfe
        generator = torch.Generator().manual_seed(0)
        chains.append(policy.rollout(prompts, generator, eta=eta, with_means=with_means, with_kl=True))
        passes.append(policy.nfe - before)
    plain, kept = chains
    assert plain.means is None and kept.means is not None and passes[0] == passes[1]
    assert torch.equal(plain.latents, kept.latents) and torch.equal(plain.kl[:, :-1], kept.kl[:, :-1])
    for i in range(policy.num_steps):
        mean = policy.transition(kept.latents[:, i], torch.full((3,), i), prompts, eta=eta).mean
        torch.testing.assert_close(kept.means[:, i], mean, rtol=1e-4, atol=1e-5)
    assert torch.equal(kept.means[:, -1], kept.latents[:, -1])  # a step without noise is its mean
