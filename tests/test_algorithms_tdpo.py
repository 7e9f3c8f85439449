"""One round of TDPO against its definition, written out again in NumPy; the critic, the probe and the resets."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_policy import Spy, ToyPolicy, ToyProxy, context

from overopt_bench.algorithms.critic import TemporalCritic
from overopt_bench.algorithms.dormancy import dormant_mask
from overopt_bench.algorithms.ppo import PolicyUpdater
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.algorithms.tdpo_r import TDPOR
from overopt_bench.compute.moments import explained_variance

SMALL = {"samples_per_epoch": 12, "batch_size": 8, "critic_hidden": (8, 4), "probe_size": 16}


def build(cls: type[TDPO] = TDPO, *, policy: ToyPolicy | None = None, left: int = 10**9, **params: Any) -> Any:
    return cls(context(policy or ToyPolicy(steps=3), proxy=ToyProxy(left)), cls.Params(**{**SMALL, **params}))


@pytest.mark.parametrize("skip", [0, 1])
def test_round_is_its_definition(skip: int) -> None:
    """A_i = (r_hat - V(x_i)), normalised over the round; V sees the decoded *input* of step i, through uint8."""
    algorithm = build(skip_last_steps=skip)
    with torch.no_grad():  # values that matter beside the rewards, so that a wrong sign shows
        for layer in algorithm.critic.linear_layers():
            layer.weight *= 3
    critic, ctx = copy.deepcopy(algorithm.critic).eval(), algorithm.ctx
    sampling, prompting = copy.deepcopy(ctx.generators["sampling"]), copy.deepcopy(ctx.generators["prompts"])
    policy_calls, critic_calls = Spy(algorithm.updater, "step"), Spy(algorithm, "update_critic")
    metrics = algorithm.step()

    other = context(ToyPolicy(steps=3))
    other.generators["prompts"] = prompting
    prompts = other.draw_prompts(12, 1)
    with torch.no_grad():
        chain = other.policy.rollout(prompts, sampling)
        rewards = other.proxy(chain.images, prompts).numpy()
        used = 3 - skip
        pixels = (chain.latents[:, :used].mean(2).squeeze(-1).squeeze(-1) * 255).round() / 255  # [N, T]
        features = torch.stack([pixels, pixels**2], -1)
        values = critic(features).numpy()
    returns = np.broadcast_to(((rewards - rewards.mean()) / (rewards.std() + 1e-6))[:, None], values.shape)
    raw = returns - values
    advantages = (raw - raw.mean()) / (raw.std() + 1e-8)

    seen = {}  # (sample, step) -> what the two updates got
    for policy_call, (f, v, g) in zip(policy_calls.calls, critic_calls.calls, strict=True):
        latents, samples, step, own_prompts, old, advantage = policy_call
        assert torch.equal(latents, chain.latents)
        for m, sample in enumerate(samples.tolist()):
            i = int(step[m])
            assert own_prompts[m] == prompts[sample]
            torch.testing.assert_close(old[m], chain.log_probs[sample, i])
            torch.testing.assert_close(f[m], features[sample, i])
            seen[sample, i] = (advantage[m].item(), v[m].item(), g[m].item())
    assert sorted(seen) == [(s, i) for s in range(12) for i in range(used)]
    for (sample, i), (advantage, value, target) in seen.items():
        assert advantage == pytest.approx(advantages[sample, i], abs=1e-4)
        assert value == pytest.approx(values[sample, i], abs=1e-5)
        assert target == pytest.approx(returns[sample, i], abs=1e-4)
    assert metrics["critic/explained_variance"] == pytest.approx(1 - raw.var() / returns.var(), abs=1e-4)
    assert metrics["advantage_spread"] == pytest.approx(raw.std(), abs=1e-4)
    assert values.std() > 0.05


def test_value_loss_takes_the_worse_of_clipped_and_not() -> None:
    algorithm = build(value_clip=0.2, max_grad_norm=1e9)
    out = algorithm.critic.linear_layers()[-1]
    with torch.no_grad():
        out.weight.zero_()
        out.bias.fill_(1.0)
    seen: list[Tensor] = []
    algorithm.critic_optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(out.bias.grad.clone()))
    # V = 1; old 0.5 -> clipped 0.7.  G = 2: (1-2)^2 = 1 < 1.69, so clipped, no gradient;  G = 0: 1 > 0.49
    loss, grad_norm, _ = algorithm.update_critic(torch.zeros(2, 2), torch.tensor([0.5, 0.5]), torch.tensor([2.0, 0.0]))
    assert loss == pytest.approx(0.5 * (1.69 + 1.0) / 2) and grad_norm == pytest.approx(0.5)
    assert seen[0].item() == pytest.approx(0.5 * 2 * 1.0 / 2)


@pytest.mark.parametrize("steps", [1, 3])
def test_last_round_may_be_a_single_image(steps: int) -> None:
    """A budget of 13 leaves one image for the second round: no spread, and still finite numbers."""
    algorithm = build(policy=ToyPolicy(steps=steps), left=13)
    algorithm.step()
    metrics = algorithm.step()
    assert algorithm.ctx.proxy.left == 0 and np.isfinite(list(metrics.values())).all()
    assert metrics["critic/explained_variance"] == 0 and algorithm.ctx.policy.shift.isfinite().all()


def test_explained_variance() -> None:
    returns = torch.tensor([-1.0, 1.0])
    assert explained_variance(returns, returns) == 1 and explained_variance(returns, torch.zeros(2)) == 0
    assert explained_variance(returns, -returns) == -3
    assert explained_variance(torch.ones(2), returns) == 0


def test_dropout_is_unbiased_and_from_its_own_generator() -> None:
    generator = torch.Generator().manual_seed(0)
    critic = TemporalCritic(3, (64, 64), "none", True, generator)
    for layer in critic.linear_layers():
        torch.nn.init.normal_(layer.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    x = torch.tensor([[0.3, -0.2, 1.0]])
    exact = critic.eval()(x).item()
    assert critic(x).item() == exact
    critic.train()
    state, draws = generator.get_state(), torch.cat([critic(x).detach() for _ in range(4000)])
    assert draws.std() > 0 and abs(draws.mean().item() - exact) < 4 * (draws.std() / 4000**0.5).item()
    generator.set_state(state)
    torch.manual_seed(7)  # the global generator has no say
    assert critic(x).item() == draws[0].item()
    unit = TemporalCritic(1, (4096,), "none", True, torch.Generator().manual_seed(0)).train()
    with torch.no_grad():
        unit.linear_layers()[0].weight.fill_(1.0)
        unit.linear_layers()[1].weight.fill_(1.0)
    kept = unit(torch.ones(1, 1)).item() / 4096 * 0.8
    assert kept == pytest.approx(0.8, abs=0.03)


def test_probe_is_the_first_rounds_and_equal_over_timesteps() -> None:
    algorithm = build(probe_size=15)
    features = torch.stack([torch.arange(3.0).expand(12, 3), torch.arange(12.0)[:, None].expand(12, 3)], -1)
    algorithm.dormancy.end_of_epoch(features, torch.zeros(12, 3))
    probe = algorithm.dormancy.probe.clone()
    assert torch.bincount(probe[:, 0].long()).tolist() == [5, 5, 5] and len(probe[:, 1].unique()) > 3
    algorithm.dormancy.end_of_epoch(features + 100, torch.zeros(12, 3))
    assert torch.equal(algorithm.dormancy.probe, probe)


def test_resets_come_with_the_period_and_its_threshold() -> None:
    algorithm = build(TDPOR, reset="dormant", reset_period=12, dormant_threshold=0.5)  # two rounds of 6 critic steps
    when, sizes = [], []
    for _ in range(5):
        reset, wrapped = algorithm.reset_critic, []

        def spy(reset: Any = reset, wrapped: list[int] = wrapped) -> None:
            activations = algorithm.critic.probe(algorithm.dormancy.probe)
            wrapped.append(sum(int(dormant_mask(a, 0.5).sum()) for a in activations))
            reset()

        algorithm.reset_critic = spy
        algorithm.step()
        algorithm.reset_critic = reset
        events = algorithm.critic_events()
        when.append([e["when"] for e in events])
        if wrapped:
            assert events[-1]["reset_units"] == wrapped[0]
            sizes += wrapped
    assert when == [["record"], ["record", "before_reset", "after_reset"]] * 2 + [["record"]]
    assert 0 < sizes[0] < 12 and algorithm.critic_events() == []


def test_tdpo_records_dormant_neurons_and_never_resets() -> None:
    algorithm = build()
    for _ in range(3):
        algorithm.step()
    events = algorithm.critic_events()
    assert [e["when"] for e in events] == ["record"] * 3
    assert [row["units"] for row in events[0]["layers"]] == [8, 4] and events[0]["all"]["units"] == 12
    expected = [int(dormant_mask(a, 0.1).sum()) for a in algorithm.critic.probe(algorithm.dormancy.probe)]
    assert [row["dormant"]["0.1"] for row in events[-1]["layers"]] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_resets_and_resume_on_a_gpu() -> None:
    """Generators and checkpoints live on the CPU, the critic does not."""
    first = build(TDPOR, policy=ToyPolicy(steps=3, device="cuda"), reset_period=1)
    first.step()
    state = copy.deepcopy(first.state_dict())
    state["recycler"]["probe"] = state["recycler"]["probe"].cpu()
    other = build(TDPOR, policy=ToyPolicy(steps=3, device="cuda"), reset_period=1)
    other.load_state_dict(state)
    assert np.isfinite(list(other.step().values())).all()
    assert other.critic_events()[0]["all"]["persistence"].keys() == {"0", "0.025", "0.1"}


def test_metrics_have_the_common_names() -> None:
    names = {"proxy/mean", "proxy/std", "advantage_spread", "zero_spread_prompts", "optimizer_steps"}
    critic = {"loss", "explained_variance", "grad_norm", "clipfrac", "steps_since_reset"}
    parts = {f"{name}/{part}" for name in ("clipfrac", "approx_kl") for part in ("first", "last", "step0", "step1")}
    by_step = {f"critic/explained_variance/step{k}" for k in (0, 1)}
    expected = names | {f"critic/{name}" for name in critic} | by_step | parts | set(PolicyUpdater.METRICS)
    assert build(skip_last_steps=1).step().keys() == expected
