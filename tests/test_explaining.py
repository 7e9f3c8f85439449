"""What critics explain of held-out chains and prompts, where the truth is known: linear, not linear, nothing, and leaks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import sem
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from overopt_bench.evaluation import explaining
from overopt_bench.evaluation.explaining import (
    PENALTIES,
    Block,
    Explained,
    Share,
    explain,
    linear_values,
    mlp_values,
    shares,
    split,
)

PROMPTS, EACH, FOLDS = 20, 16, 5
N = PROMPTS * EACH
GROUPS = np.arange(PROMPTS).repeat(EACH)
PARTS = split(GROUPS, FOLDS, 0)
EMBEDDINGS = np.random.default_rng(9).standard_normal((PROMPTS, 3)).repeat(EACH, 0).astype(np.float32)
Numbers = NDArray[np.float64]


def noise(*shape: int, seed: int = 0) -> Numbers:
    return np.random.default_rng(seed).standard_normal(shape)


def seen(features: Numbers) -> Block:
    """Features ``[N, T, D]`` by step."""
    return lambda k: features[:, k].astype(np.float32)


def explained(returns: Numbers, values: Numbers) -> Numbers:
    """Each step's share, ``[T]``."""
    found: Numbers = 1 - np.var(returns[:, None] - values, 0) / np.var(returns)
    return found


def test_each_chain_is_in_one_part_and_each_prompt_too_where_prompts_are_held_out() -> None:
    assert np.bincount(PARTS["chains"]).tolist() == np.bincount(PARTS["prompts"]).tolist() == [N // FOLDS] * FOLDS
    parts_of_a_prompt = {name: len({*parts[GROUPS == 3].tolist()}) for name, parts in PARTS.items()}
    assert parts_of_a_prompt["prompts"] == 1 and parts_of_a_prompt["chains"] > 1


def test_fits_from_sums_are_those_of_scikit_learn() -> None:
    """Standardised inputs, one constant and one far from 0, and a penalty by the error on parts left out, the long way."""
    features = noise(N, 2, 6) * [1, 10, 0.1, 1, 0, 1] + [0, 0, 0, 50, 7, 0]
    features = features.astype(np.float32).astype(np.float64)
    returns, parts = 0.2 * features[:, 1, 0] + noise(N, seed=1) + 3, PARTS["chains"]

    def fit(own: NDArray[np.bool_], other: NDArray[np.bool_], penalty: float) -> Numbers:
        scaler = StandardScaler().fit(features[own].reshape(-1, 6))
        ridge = Ridge(alpha=penalty).fit(scaler.transform(features[own].reshape(-1, 6)), returns[own].repeat(2))
        values: Numbers = ridge.predict(scaler.transform(features[other].reshape(-1, 6))).reshape(-1, 2)
        return values

    expected, chosen = np.empty((N, 2)), set()
    for part in range(FOLDS):
        errors = [
            sum(
                ((fit((parts != part) & (parts != k), parts == k, penalty) - returns[parts == k, None]) ** 2).sum()
                for k in range(FOLDS)
                if k != part
            )
            for penalty in PENALTIES
        ]
        chosen.add(best := PENALTIES[int(np.argmin(errors))])
        expected[parts == part] = fit(parts != part, parts == part, best)
    assert not chosen & {PENALTIES[0], PENALTIES[-1]}  # so that the choice matters
    np.testing.assert_allclose(linear_values(seen(features), range(2), returns, parts), expected, rtol=1e-5)


@pytest.mark.parametrize("parts", PARTS.values(), ids=[*PARTS])
def test_a_linear_relation_is_recovered_at_the_step_that_has_it(parts: NDArray[np.int64]) -> None:
    """Returns are a direction of the last step's features plus noise of a third of its variance: R^2 is 3/4."""
    features = noise(N, 2, 4)
    returns = features[:, 1, 0] + noise(N, seed=1) / 3**0.5
    first, last = (explained(returns, linear_values(seen(features), [k], returns, parts))[0] for k in (0, 1))
    assert last == pytest.approx(0.75, abs=0.05) and first == pytest.approx(0, abs=0.02)
    # one model for both predicts b x at both: b = 1/2 loses the least, (1/4 + 1/3) / (4/3) and (5/4 + 1/3) / (4/3)
    one = explained(returns, linear_values(seen(features), range(2), returns, parts))
    assert one == pytest.approx([1 - (5 / 4 + 1 / 3) / (4 / 3), 1 - (1 / 4 + 1 / 3) / (4 / 3)], abs=0.06)


def test_what_holds_for_one_prompt_alone_helps_on_its_chains_and_not_on_other_prompts() -> None:
    """Each prompt has a direction of its own, that no other prompt's chains have."""
    x = noise(N)
    features = (np.eye(PROMPTS)[GROUPS] * x[:, None])[:, None]
    returns = x * np.sign(noise(PROMPTS, seed=2))[GROUPS] + 0.3 * noise(N, seed=1)
    found = {name: explained(returns, linear_values(seen(features), [0], returns, p))[0] for name, p in PARTS.items()}
    assert found["chains"] > 0.8 and found["prompts"] == pytest.approx(0, abs=0.02)


def test_the_steps_of_a_chain_stay_together() -> None:
    """Features that name the chain say nothing of its return, though they would if another of its steps were fitted on."""
    chains = 100
    names, returns = np.eye(chains)[:, None].repeat(3, 1), noise(chains, seed=1)
    own = split(np.arange(chains), FOLDS, 0)["chains"]
    assert explained(returns, linear_values(seen(names), range(3), returns, own)).max() < 0.01
    rows, again = np.tile(np.eye(chains), (3, 1))[:, None], np.tile(returns, 3)  # a row a step, and each step a part
    apart = linear_values(seen(rows), [0], again, np.arange(3).repeat(chains))
    assert explained(again, apart)[0] > 0.5


def test_what_is_not_linear_is_found_by_the_perceptron_alone() -> None:
    half = noise(N // 2, 1, 2).repeat(6, 1)
    features = np.concatenate([half, -half])  # so that no line fits the square, by chance either
    returns = features[:, 0, 0] ** 2 + 0.3 * noise(N, seed=1)
    parts = PARTS["chains"]
    assert explained(returns, mlp_values(seen(features), range(6), returns, parts, seed=0)).min() > 0.3
    assert explained(returns, linear_values(seen(features), range(6), returns, parts)).max() < 0.03


def test_of_noise_next_to_nothing_is_explained_and_twice_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explaining, "EPOCHS", 5)
    features, returns = noise(N, 2, 4).astype(np.float32), noise(N, seed=1)
    rows = explain(features, returns, GROUPS, EMBEDDINGS, trained_steps=1, folds=FOLDS, seed=0)
    assert len({(row.critic, row.inputs, row.held_out) for row in rows}) == len(rows) == 10
    for row in rows:
        assert row.pooled.value < 0.01 and len(row.steps) == 2 and row.trained == row.steps[0]
        if row.critic == "linear":  # which knows by its penalty that there is nothing
            assert row.pooled.value > -0.03 and not row.pooled.found
    assert rows == explain(features, returns, GROUPS, EMBEDDINGS, trained_steps=1, folds=FOLDS, seed=0)


def test_the_prompt_is_seen_where_it_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Returns that the prompt's embedding gives, which normalised ones never are."""
    monkeypatch.setattr(explaining, "EPOCHS", 1)
    returns = EMBEDDINGS[:, 0] + 0.3 * noise(N, seed=1)
    found = explain(noise(N, 2, 4).astype(np.float32), returns, GROUPS, EMBEDDINGS, trained_steps=2, folds=5, seed=0)
    rows: dict[tuple[str, str, str], Explained] = {(row.critic, row.inputs, row.held_out): row for row in found}
    for held_out in PARTS:
        assert rows["linear", "features, step, prompt", held_out].trained.value > 0.7
        assert rows["linear", "features", held_out].trained.value < 0.05


def test_the_error_is_that_of_a_mean_over_prompts() -> None:
    """Where all prompts' returns have the same mean and spread, the share is the mean of the prompts' shares."""
    groups, signs = np.arange(4).repeat(2), np.tile([1.0, -1.0], 4)
    missed = np.array([0.1, 0.5, 0.3, 0.9]).repeat(2)  # of the return, at the first step
    values = np.stack([(1 - missed) * signs, 0 * signs], 1)
    pooled, trained, first, second = shares(signs, values, groups, 1)
    each = 1 - missed[::2] ** 2
    assert first.value == pytest.approx(each.mean()) and first.error == pytest.approx(sem(each))
    assert trained == first and second == Share(0, 0)
    assert pooled.value == pytest.approx(each.mean() / 2) and pooled.error == pytest.approx(sem(each / 2))


@pytest.mark.parametrize(
    ("value", "error", "found"), [(0.05, 0.02, True), (0.05, 0.03, False), (-0.1, 0.01, False), (1e-9, 0, False)]
)
def test_what_is_below_two_errors_is_not_found(value: float, error: float, found: bool) -> None:
    assert Share(value, error).found is found
