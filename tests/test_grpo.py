"""Group-relative advantages, GRPO-Guard's ratio and a window of noise, against arrays made without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from overopt_bench.algorithms.groups import Scale, group_advantages

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
