"""What critics explain on unseen prompts, where the truth is known: linear, not linear, nothing, and a leak."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from overopt_bench.evaluation.explaining import (
    Explained,
    explain,
    fit_linear,
    fit_mlp,
    held_out_values,
)

PROMPTS, EACH, STEPS, DIMENSIONS = 30, 16, 2, 4
N = PROMPTS * EACH
GROUPS = np.arange(PROMPTS).repeat(EACH)
Numbers = NDArray[np.float64]


def within_prompts(returns: Numbers) -> Numbers:
    table = returns.reshape(PROMPTS, EACH)
    return ((table - table.mean(1, keepdims=True)) / table.std(1, keepdims=True)).ravel()


def explained(features: Numbers, returns: Numbers) -> dict[tuple[str, str], Explained]:
    embeddings = np.random.default_rng(9).standard_normal((PROMPTS, 3)).repeat(EACH, 0)
    rows = explain(features, returns, GROUPS, embeddings, trained_steps=1, seed=0)
    return {(row.critic, row.inputs): row for row in rows}


def noise(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape)


def test_a_linear_relation_is_recovered_at_the_step_that_has_it() -> None:
    """Returns are a direction of the last step's features plus noise of a third of its variance: R^2 is 3/4."""
    features = noise(N, STEPS, DIMENSIONS)
    returns = features[:, 1, 0] + noise(N, seed=1) / 3**0.5
    rows = explained(features, returns)
    each = rows["linear", "features, a model a step"]
    assert each.steps[1] == pytest.approx(0.75, abs=0.05) and each.steps[0] == pytest.approx(0, abs=0.01)
    assert each.pooled == pytest.approx(0.375, abs=0.03) and each.trained == each.steps[0]
    # one model for both steps predicts b x at both: b = 1/2 loses the least, at 1 - (1/4 + 1/3) / (4/3) and 1 - (5/4 + 1/3) / (4/3)
    one = rows["linear", "features"]
    assert one.steps[1] == pytest.approx(1 - (1 / 4 + 1 / 3) / (4 / 3), abs=0.05)
    assert one.steps[0] == pytest.approx(1 - (5 / 4 + 3 / 9) / (4 / 3), abs=0.05)
    # the perceptron that is told the step can use the features where they mean something
    assert rows["mlp", "features, step"].steps[1] > 0.65 > one.steps[1]


def test_what_is_not_linear_is_found_by_the_perceptron_alone() -> None:
    features = noise(N, STEPS, DIMENSIONS)
    features[:, 1] = features[:, 0]
    returns = features[:, 0, 0] ** 2 + 0.3 * noise(N, seed=1)
    rows = explained(features, returns)
    assert rows["mlp", "features"].pooled > 0.8
    assert all(row.pooled < 0.03 for (critic, _), row in rows.items() if critic == "linear")


def test_of_noise_nothing_is_explained() -> None:
    rows = explained(noise(N, STEPS, DIMENSIONS), within_prompts(noise(N, seed=1)))
    assert len(rows) == 7
    for row in rows.values():
        assert -0.03 < row.pooled < 0.005 and all(-0.03 < step < 0.005 for step in row.steps)


@pytest.mark.parametrize("fit", [fit_linear, lambda *own: fit_mlp(*own, seed=0)], ids=["linear", "mlp"])
def test_a_feature_that_names_the_prompt_is_worth_nothing(fit: Any) -> None:
    """The prompt's own mean is most of the raw reward; neither that, nor the prompt's number, tells of its returns."""
    means = noise(PROMPTS, seed=2).repeat(EACH)
    rewards = 3 * means + noise(N, seed=1)
    named = np.stack([means, GROUPS / PROMPTS], 1)[:, None]  # [N, 1, 2]
    values = held_out_values(fit, named, within_prompts(rewards), GROUPS)
    assert np.abs(values).max() < 0.2 and 1 - np.var(within_prompts(rewards) - values[:, 0]) < 0.005
    # a one-hot of the prompt says nothing of raw rewards either, for the prompt was not among those fitted on
    one_hot = np.eye(PROMPTS)[GROUPS][:, None]
    held = held_out_values(fit, one_hot, rewards, GROUPS)[:, 0]
    assert 1 - np.var(rewards - held) / np.var(rewards) < 0.02
    rows_apart = np.arange(N)  # as if each chain were a prompt: then the same feature gives most of it away
    told = held_out_values(fit, one_hot, rewards, rows_apart)[:, 0]
    assert 1 - np.var(rewards - told) / np.var(rewards) > 0.7


def test_the_same_numbers_twice() -> None:
    features, returns = noise(N, STEPS, DIMENSIONS), within_prompts(noise(N, seed=1))
    returns = returns + features[:, 0, 0]
    assert explained(features, returns) == explained(features, returns)
