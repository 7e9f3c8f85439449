"""Dormant neurons against hand-worked cases, and resets that touch exactly what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from overopt_bench.algorithms.critic import TemporalCritic
from overopt_bench.algorithms.dormancy import (
    DormantRecord,
    choose_units,
    dormant_mask,
    dormant_scores,
    persistence,
    reset_units,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "dormant.npz")


@pytest.mark.parametrize("case", ["exact", "signed", "relu", "tokens", "zero"])
def test_scores_and_masks_match_hand_worked_cases(case: str) -> None:
    activations = torch.from_numpy(GOLDEN[f"{case}_activations"])
    torch.testing.assert_close(
        dormant_scores(activations), torch.from_numpy(GOLDEN[f"{case}_scores"]).float(), rtol=1e-6, atol=1e-7
    )
    for threshold, expected in zip(GOLDEN["thresholds"].tolist(), GOLDEN[f"{case}_masks"], strict=True):
        assert dormant_mask(activations, threshold).tolist() == expected.tolist()


def test_persistence_is_the_overlap_coefficient() -> None:
    before, after = (torch.from_numpy(GOLDEN[f"persist_{k}"]) for k in ("before", "after"))
    assert persistence(before, after) == pytest.approx(float(GOLDEN["persist_overlap"]))
    assert persistence(before, torch.zeros_like(after)) is None


def test_record_counts_layers_and_pools_them() -> None:
    record = DormantRecord(["0", "1"])
    first = [torch.tensor([[0.0, 1, 1, 2]]), torch.tensor([[0.0, 0, 3]])]
    event = record.event(first, "record")
    assert [row["dormant"]["0"] for row in event["layers"]] == [1, 2] and event["all"]["dormant"]["0"] == 3
    assert event["all"]["units"] == 7 and event["all"]["persistence"]["0"] is None
    second = [torch.tensor([[0.0, 0, 1, 2]]), torch.tensor([[5.0, 0, 3]])]
    event = record.event(second, "record")
    assert [row["persistence"]["0"] for row in event["layers"]] == [1.0, 1.0]
    assert event["all"]["persistence"]["0"] == pytest.approx(2 / 3)
    third = [torch.tensor([[1.0, 0, 0, 2]]), torch.tensor([[5.0, 0, 0]])]
    record.event(first, "before_reset")  # looks, but is not what the next record is compared with
    event = record.event(third, "record")
    assert [row["persistence"]["0"] for row in event["layers"]] == [0.5, 1.0]


def test_units_are_chosen_by_mode() -> None:
    dormant = torch.tensor([True, False, False, True, False])
    g = torch.Generator().manual_seed(0)
    assert choose_units(dormant, "active", g).tolist() == [False, True, True, False, True]
    assert choose_units(dormant, "dormant", g).tolist() == dormant.tolist()
    assert choose_units(dormant, "all", g).all() and not choose_units(dormant, "none", g).any()
    draws = [choose_units(dormant, "random", g) for _ in range(20)]
    assert {int(d.sum()) for d in draws} == {3} and len({tuple(d.tolist()) for d in draws}) > 1


def trained_critic(activation: str = "none") -> tuple[TemporalCritic, torch.optim.AdamW]:
    g = torch.Generator().manual_seed(0)
    critic = TemporalCritic(5, (6, 4), activation, False, g)
    for layer in critic.linear_layers():
        nn.init.normal_(layer.weight, generator=g)
    optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-3)
    for _ in range(3):
        critic(torch.randn(8, 5, generator=g)).pow(2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return critic, optimizer


@pytest.mark.parametrize("adam_step", ["keep", "zero"])
def test_reset_touches_exactly_the_chosen_entries(adam_step: str) -> None:
    critic, optimizer = trained_critic()
    layers = critic.linear_layers()
    units = [torch.tensor([True, False, True, False, False, False]), torch.zeros(4, dtype=torch.bool)]
    before = {p: p.detach().clone() for p in critic.parameters()}
    moments = {p: optimizer.state[p]["exp_avg"].clone() for p in critic.parameters()}
    count = reset_units(
        layers, units, optimizer, 0.1, torch.Generator().manual_seed(1), outgoing="noise", adam_step=adam_step
    )  # fmt: skip
    assert count == 2
    expected = {p: torch.zeros_like(p, dtype=torch.bool) for p in critic.parameters()}
    expected[layers[0].weight][units[0]] = True
    expected[layers[0].bias][units[0]] = True
    expected[layers[1].weight][:, units[0]] = True
    for p, touched in expected.items():
        assert torch.equal(p.detach() != before[p], touched)
        state = optimizer.state[p]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[moment] == 0, touched)
        torch.testing.assert_close(state["exp_avg"][~touched], moments[p][~touched], rtol=0, atol=0)
        assert state["step"].item() == (0 if adam_step == "zero" and touched.any() else 3)
    assert (layers[0].bias[units[0]] == 0).all()


def test_zeroed_outgoing_weights_of_dormant_units_keep_the_function() -> None:
    critic, optimizer = trained_critic("relu")
    first = critic.linear_layers()[0]
    with torch.no_grad():
        first.weight[2] = 0
        first.bias[2] = -1  # never fires
    x = torch.randn(50, 5, generator=torch.Generator().manual_seed(2))
    before = critic(x).detach()
    dormant = [dormant_mask(a, 0.0) for a in critic.probe(x)]
    assert dormant[0][2]
    reset_units(
        critic.linear_layers(),
        dormant,
        optimizer,
        0.1,
        torch.Generator().manual_seed(1),
        outgoing="zero",
        adam_step="keep",
    )
    torch.testing.assert_close(critic(x).detach(), before)
    assert first.weight[2].abs().sum() > 0


def test_published_initialisation_and_probe() -> None:
    critic = TemporalCritic(64, (256, 32), "none", True, torch.Generator().manual_seed(0))
    assert critic.linear_layers()[1].weight.std().item() == pytest.approx(1 / 65, rel=0.05)
    x = torch.randn(7, 64)
    torch.testing.assert_close(critic.probe(x)[0], critic.linear_layers()[0](x).relu())
    hidden = critic.linear_layers()[0](x)  # no activation in between, although the probe has one
    torch.testing.assert_close(critic.probe(x)[1], critic.linear_layers()[1](hidden).relu())
