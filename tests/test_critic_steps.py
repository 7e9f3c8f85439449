"""How often TDPO's critic is fitted, when it is reset, and what the record says that it explains."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from toy_policy import Spy, ToyPolicy, context

from overopt_bench.algorithms import tdpo
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.algorithms.tdpo_r import TDPOR
from overopt_bench.compute.moments import explained_by_step, explained_variance

SMALL = {"samples_per_epoch": 12, "batch_size": 8, "critic_hidden": (8, 4), "probe_size": 16}  # 6 updates of 3 steps
PRESET = Path(__file__).parents[1] / "overopt_bench" / "presets" / "tdpo-paper.yaml"


def build(cls: type[TDPO] = TDPO, *, steps: int = 3, **params: Any) -> Any:
    return cls(context(ToyPolicy(steps=steps)), cls.Params(**{**SMALL, **params}))


def seen_as(monkeypatch: pytest.MonkeyPatch, features: Tensor) -> None:
    """Let the critic see these features ``[N, T, D]``, whatever was sampled."""
    monkeypatch.setattr(tdpo, "latent_features", lambda *_: (features,))


def test_further_critic_steps_are_on_other_transitions_of_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = build(critic_updates=4)
    seen_as(monkeypatch, torch.arange(72.0).view(12, 3, 2) / 72)  # no two alike
    policy, critic = Spy(algorithm.updater, "step"), Spy(algorithm, "update_critic")
    epoch = Spy(algorithm.dormancy, "end_of_epoch")
    algorithm.step()
    features, returns = epoch.calls[0]
    known = {tuple(row): g for row, g in zip(features.flatten(0, 1).tolist(), returns.flatten().tolist(), strict=True)}
    assert len(known) == 36 and len(policy.calls) == 6 and len(critic.calls) == 24
    used: set[tuple[float, ...]] = set()
    for k, (own, values, targets) in enumerate(critic.calls):
        sample, step = policy.calls[k // 4][1:3]
        assert own.shape == (len(sample), 2) and values.shape == targets.shape == (len(sample),)
        if k % 4 == 0:
            assert torch.equal(own, features[sample, step])
        rows = [tuple(row) for row in own.tolist()]
        assert len(set(rows)) == len(rows) and [known[row] for row in rows] == targets.tolist()
        used |= set(rows) if k == 1 or k == 2 else set()
    assert len(used) > 8  # two batches of 8 are not one batch twice


def test_a_critic_step_more_changes_no_update_of_the_policy_in_its_epoch() -> None:
    """Advantages are of the critic as the epoch found it, and further batches are from the critic's own generator."""
    once, often = build(), build(critic_updates=3)
    once.step(), often.step()
    assert torch.equal(once.ctx.policy.shift, often.ctx.policy.shift)
    assert not torch.equal(once.critic.layers[-1].bias, often.critic.layers[-1].bias)
    for name in ("sampling", "prompts", "batch"):
        assert torch.equal(once.ctx.generators[name].get_state(), often.ctx.generators[name].get_state())


def test_more_critic_steps_explain_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of returns that are features themselves. Most values reach the clip, and the weights that they share go on."""
    answer, explained, stopped = torch.linspace(-1, 1, 12), [], []
    seen_as(monkeypatch, answer.view(12, 1, 1).expand(12, 3, 2))
    for updates, clip in ((1, 100.0), (100, 100.0), (100, 0.2)):
        algorithm = build(critic_updates=updates, critic_lr=2e-3, critic_dropout=False, value_clip=clip)
        algorithm.per_prompt_stats.update = lambda prompts, rewards: answer
        stopped.append(algorithm.step()["critic/clipfrac"])
        explained.append(algorithm.critic_events()[-1]["explained_variance"])
    assert explained[0] < 0.4 and min(explained[1:]) > 0.95
    assert stopped[:2] == [0, 0] and 0.5 < stopped[2] < 0.9


def resets(algorithm: TDPOR, epochs: int) -> list[int]:
    """The epochs at whose end there was a reset, from 1."""
    seen = []
    for epoch in range(1, epochs + 1):
        algorithm.step()
        seen += [epoch for event in algorithm.critic_events() if event["when"] == "after_reset"]
    return seen


def test_the_published_schedule() -> None:
    """Chains of 50 steps, 256 images an epoch in batches of 128: 100 critic steps an epoch, a reset every 10 epochs."""
    preset = yaml.safe_load(PRESET.read_text(encoding="utf-8"))
    published = preset["algorithms"]["tdpo_r"]
    schedule = {
        k: published[k]
        for k in ("samples_per_epoch", "batch_size", "critic_updates", "reset_period", "skip_last_steps")
    }
    default = TDPOR.Params()
    assert {k: getattr(default, k) for k in schedule} == schedule and preset["num_steps"] == 50
    algorithm = build(TDPOR, steps=50, critic_hidden=(2,), probe=published["probe"], **schedule)
    seen = []
    algorithm.updater.step = lambda *_, **__: None  # what is counted is the critic's steps
    algorithm.updater.take_summary = dict
    algorithm.update_critic = lambda *_: seen.append(1) or [0.0, 0.0, 0.0]
    assert resets(algorithm, 31) == [10, 20, 30] and len(seen) == 3100


@pytest.mark.parametrize(
    ("period", "updates", "expected"),
    [(6, 1, [1, 2, 3, 4, 5, 6]), (7, 1, [2, 4, 6]), (12, 1, [2, 4, 6]), (13, 1, [3, 6]), (12, 2, [1, 2, 3, 4, 5, 6])],
)
def test_a_reset_comes_with_the_epoch_that_completes_its_period(period: int, updates: int, expected: list[int]) -> None:
    assert resets(build(TDPOR, reset_period=period, critic_updates=updates), 6) == expected


def test_steps_since_the_reset_are_of_the_critic_that_the_row_speaks_of() -> None:
    algorithm = build(TDPOR, reset_period=12)
    assert [algorithm.step()["critic/steps_since_reset"] for _ in range(5)] == [0, 6, 0, 6, 0]
    assert [build().step()["critic/steps_since_reset"], build(TDPOR, reset="none").steps_since_reset] == [0, 0]
    never = build(TDPOR, reset="none", reset_period=1)
    assert resets(never, 2) == [] and never.steps_since_reset == 12


def test_the_count_of_critic_steps_goes_on_after_a_restart() -> None:
    whole = build(TDPOR, reset_period=13, critic_updates=2, probe="epoch")
    whole.step(), whole.critic_events()
    other = build(TDPOR, reset_period=13, critic_updates=2, probe="epoch")
    other.load_state_dict(copy.deepcopy(whole.state_dict()))
    other.ctx.policy.load_state_dict(whole.ctx.policy.state_dict())
    for name, generator in other.ctx.generators.items():
        generator.set_state(whole.ctx.generators[name].get_state())
    for _ in range(3):
        assert other.step() == whole.step() and other.critic_events() == whole.critic_events()
    assert other.steps_since_reset == whole.steps_since_reset == 0
    assert all(torch.equal(a, b) for a, b in zip(other.critic.parameters(), whole.critic.parameters(), strict=True))


@pytest.mark.parametrize("probe", ["fixed", "epoch"])
def test_probe_is_kept_or_of_each_epoch(probe: str) -> None:
    algorithm = build(probe=probe, probe_size=15)
    features = torch.stack([torch.arange(3.0).expand(12, 3), torch.arange(12.0)[:, None].expand(12, 3)], -1)
    for _ in range(2):
        algorithm.dormancy.end_of_epoch(features, torch.randn(12, 3))
        features = features + 100
    offset = 100 if probe == "epoch" else 0
    assert torch.bincount(algorithm.dormancy.probe[:, 0].long() - offset).tolist() == [5, 5, 5]


def test_explained_variance_by_step_worked_by_hand() -> None:
    """Exact, no spread of values, twice the return (1 - Var(-G) / Var(G) = 0), opposite (1 - 4)."""
    returns = torch.tensor([[-1.0], [1.0]]).expand(2, 4)
    values = torch.tensor([[-1.0, 5, -2, 1], [1.0, 5, 2, -1]])
    assert explained_by_step(returns, values) == [1, 0, 0, -3]
    assert explained_variance(returns, values) == pytest.approx(1 - (returns - values).numpy().var() / 1)


def test_record_has_the_explained_variance_around_a_reset() -> None:
    """Before and after it on the same returns; the train row has that of the values which the advantages were made with."""
    algorithm = build(TDPOR, reset="all", reset_period=12, critic_updates=1, critic_lr=0.05, critic_dropout=False)
    values = Spy(algorithm.dormancy, "end_of_epoch")
    found = {}
    note = algorithm.dormancy.note

    def spy(when: str, **more: int) -> None:
        features, returns = values.calls[-1]
        with torch.no_grad():
            found[len(values.calls), when] = 1 - (returns - algorithm.critic.eval()(features)).var() / returns.var()
        note(when, **more)

    algorithm.dormancy.note = spy
    rows, events = [], {}
    for epoch in range(1, 4):
        rows.append(algorithm.step())
        events |= {(epoch, event["when"]): event for event in algorithm.critic_events()}
    assert events.keys() == {(1, "record"), (2, "record"), (2, "before_reset"), (2, "after_reset"), (3, "record")}
    for key, event in events.items():
        assert event["explained_variance"] == pytest.approx(found[key].item(), abs=1e-5)
        assert len(event["explained_variance_by_step"]) == 3
    before, after = (events[2, f"{when}_reset"]["explained_variance"] for when in ("before", "after"))
    assert before == events[2, "record"]["explained_variance"] and abs(after - before) > 1e-3
    assert rows[0].keys() >= {f"critic/explained_variance/step{k}" for k in range(3)}


def test_stopped_values_are_counted() -> None:
    """V = 1 from V_old = 0.5, clip 0.2: stopped where G is beyond, at 2; not where it went the wrong way, G = 0."""
    algorithm = build(value_clip=0.2)
    out = algorithm.critic.linear_layers()[-1]
    with torch.no_grad():
        out.weight.zero_()
        out.bias.fill_(1.0)
    old, returns = torch.tensor([0.5, 0.5, 0.9, 0.9]), torch.tensor([2.0, 0.0, 2.0, 0.0])
    assert algorithm.update_critic(torch.zeros(4, 2), old, returns)[2] == 0.25
