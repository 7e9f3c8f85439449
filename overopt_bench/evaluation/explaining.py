"""What a critic could explain: variance of returns that it was not fitted on, by cross-validation.

Two questions are asked. A critic in training meets the same prompts again in every epoch, so its bar is what is explained on
held-out chains of known prompts. Held-out prompts say whether that carries over to others. All steps of a chain stay
together, for they share their return.

One step's inputs at a time are held in float64, and of a linear critic's rows only their sums of products, so memory does not
grow with the steps beyond the float32 features; a perceptron needs all its rows at once, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GroupKFold, KFold
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from overopt_bench.compute.moments import explained_variance

Critic = Literal["linear", "mlp"]
Inputs = Literal["features", "features, a model a step", "features, step, prompt"]
HeldOut = Literal["chains", "prompts"]
Numbers = NDArray[np.float64]
Block = Callable[[int], NDArray[np.float32]]  # a step's number to what is seen there, [N, W]

PENALTIES = np.logspace(0, 6, 7)  # of standardised inputs; with the last one next to nothing is explained
CONSTANT = 1e-6  # an input that varies less than this share of the one that varies most is none
ROUNDING = 1e-6  # where a critic gives the mean alone, share and error are both next to 0
HIDDEN = (64,)
MLP_PENALTY = 1e-3
EPOCHS, PATIENCE = 200, 10  # passes over the data at most, and without an improvement


@dataclass(frozen=True)
class Share:
    """A share of the variance of returns: 1 - Var(G - V) / Var(G), where 1 is everything, 0 nothing, and below 0 harm.

    Attributes:
        value: the share.
        error: its standard error over prompts, by the jackknife with the fitted critics as they are.
    """

    value: float
    error: float

    @property
    def found(self) -> bool:
        """Whether it is more than two standard errors above zero, and more than rounding."""
        return self.value > max(2 * self.error, ROUNDING)


@dataclass(frozen=True)
class Explained:
    """What a kind of critic explains of returns that it was not fitted on.

    Attributes:
        critic: linear, by ridge regression, or a multilayer perceptron.
        inputs: what it sees, and whether there is one model or one for each step.
        held_out: chains of prompts that it was fitted on, or whole prompts.
        pooled: over all steps together.
        trained: the mean over the steps that are trained on.
        steps: by denoising step, the noisiest first.
    """

    critic: Critic
    inputs: Inputs
    held_out: HeldOut
    pooled: Share
    trained: Share
    steps: tuple[Share, ...]


def explain(
    features: NDArray[np.float32],
    returns: Numbers,
    groups: NDArray[np.int64],
    prompts: NDArray[np.float32],
    *,
    trained_steps: int,
    folds: int,
    seed: int,
) -> list[Explained]:
    """Measure every kind of critic on both kinds of held-out data, in one thread.

    Args:
        features: ``[N, T, D]`` of each step's input.
        returns: ``[N]`` of the chains, normalised within prompts.
        groups: ``[N]`` numbers of the prompts, ``folds`` different ones at least.
        prompts: ``[N, P]`` embeddings of the prompts.
        trained_steps: how many steps, from the noisiest on, are trained on.
        folds: parts of the data, 3 at least. Each is held out once; penalties and when to stop are chosen on the others.
        seed: of the perceptron's weights and batches, and of the chains' parts.
    """
    every = range(features.shape[1])

    def alone(k: int) -> NDArray[np.float32]:
        return features[:, k]

    def told(k: int) -> NDArray[np.float32]:
        step = np.zeros((len(features), len(every)), np.float32)
        step[:, k] = 1
        return np.concatenate([features[:, k], step, prompts], 1)

    rows = []
    with threadpool_limits(limits=1):  # sums in one order, so that the numbers are the same twice
        for held_out, parts in split(groups, folds, seed).items():
            each = [linear_values(alone, [k], returns, parts) for k in every]
            found: dict[tuple[Critic, Inputs], Numbers] = {
                ("linear", "features"): linear_values(alone, every, returns, parts),
                ("linear", "features, a model a step"): np.concatenate(each, 1),
                ("linear", "features, step, prompt"): linear_values(told, every, returns, parts),
                ("mlp", "features"): mlp_values(alone, every, returns, parts, seed),
                ("mlp", "features, step, prompt"): mlp_values(told, every, returns, parts, seed),
            }
            for (critic, inputs), values in found.items():
                pooled, trained, *steps = shares(returns, values, groups, trained_steps)
                rows.append(Explained(critic, inputs, held_out, pooled, trained, tuple(steps)))
    return rows


def split(groups: NDArray[np.int64], folds: int, seed: int) -> dict[HeldOut, NDArray[np.int64]]:
    """Give the number ``[N]`` of each chain's part, by chains at random and by whole prompts."""
    cuts: dict[HeldOut, Any] = {
        "chains": KFold(folds, shuffle=True, random_state=seed).split(groups),
        "prompts": GroupKFold(folds).split(groups, groups=groups),
    }
    found = {}
    for held_out, cut in cuts.items():
        found[held_out] = np.empty(len(groups), np.int64)
        for number, (_, held) in enumerate(cut):
            found[held_out][held] = number
    return found


def shares(returns: Numbers, values: Numbers, groups: NDArray[np.int64], trained_steps: int) -> Iterator[Share]:
    """Yield the shares that values ``[N, T]`` explain: over all steps, the mean of those trained on, and each step's."""
    v = torch.from_numpy(values)
    g = torch.from_numpy(returns)[:, None].expand_as(v)  # [N, T], gamma 1

    def measure(kept: Any) -> list[float]:
        steps = [explained_variance(g[kept, k], v[kept, k]) for k in range(v.shape[1])]
        return [explained_variance(g[kept], v[kept]), float(np.mean(steps[:trained_steps])), *steps]

    names = np.unique(groups)
    without = np.array([measure(torch.from_numpy(groups != name)) for name in names])  # [M, T + 2]
    errors = np.sqrt((len(names) - 1) * without.var(0))
    for value, error in zip(measure(slice(None)), errors, strict=True):
        yield Share(value, float(error))


def linear_values(block: Block, steps: Sequence[int], returns: Numbers, parts: NDArray[np.int64]) -> Numbers:
    """Values ``[N, T]`` of one ridge regression for these steps, each by a fit without the chain's part.

    The penalty is the one with the lowest error on the other parts, each left out in turn. All that is needed of a part is
    the sums of products of its rows (1, return, inputs): fits and errors follow from these.
    """
    centre = np.mean([block(k).mean(0, dtype=np.float64) for k in steps], 0)  # near 0, where sums of squares are exact

    def rows(k: int, part: int) -> Numbers:
        y = returns[parts == part][:, None]
        return np.concatenate([np.ones_like(y), y, block(k)[parts == part] - centre], 1)

    names = np.unique(parts)
    sums = np.array([sum(z.T @ z for z in (rows(k, part) for k in steps)) for part in names])  # [F, W + 2, W + 2]
    values = np.empty((len(returns), len(steps)))
    for part in names:
        others = sums.sum(0) - sums[part]
        errors = np.zeros(len(PENALTIES))
        for left_out in names[names != part]:
            residual = ridge(others - sums[left_out])  # [W + 2, A]
            errors += (residual * (sums[left_out] @ residual)).sum(0)
        residual = ridge(others)[:, errors.argmin()]
        for column, k in enumerate(steps):
            z = rows(k, part)
            values[parts == part, column] = z @ residual + z[:, 1]
    return values


def ridge(sums: Numbers) -> Numbers:
    """Fit with every penalty, on standardised inputs, by one eigendecomposition.

    Args:
        sums: ``[W + 2, W + 2]`` of products of rows z = (1, return, inputs).

    Returns:
        ``[W + 2, A]``, a column for each of ``PENALTIES``: z times it is the value less the return.
    """
    n, mean = sums[0, 0], sums[0, 1:] / sums[0, 0]
    products = sums[1:, 1:] - n * np.outer(mean, mean)
    scale = np.sqrt(products.diagonal()[1:].clip(0) / n)
    scale[scale <= CONSTANT * scale.max()] = np.inf  # so that its coefficient is 0
    eigenvalues, vectors = np.linalg.eigh(products[1:, 1:] / np.outer(scale, scale))
    target = vectors.T @ (products[1:, 0] / scale)
    slopes = vectors @ (target[:, None] / (eigenvalues.clip(0)[:, None] + PENALTIES)) / scale[:, None]
    return np.concatenate([mean[:1] - (mean[1:] @ slopes)[None], -np.ones((1, len(PENALTIES))), slopes])


def mlp_values(block: Block, steps: Sequence[int], returns: Numbers, parts: NDArray[np.int64], seed: int) -> Numbers:
    """Values ``[N, T]`` of a perceptron, each by a fit without the chain's part that was stopped by the next part."""
    names = np.unique(parts)
    values = np.empty((len(returns), len(steps)))

    def rows(kept: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.concatenate([block(k)[kept] for k in steps]), np.tile(returns[kept], len(steps)).astype(np.float32)

    for part, stopping in zip(names, np.roll(names, -1), strict=True):
        critic = fit_mlp(*rows((parts != part) & (parts != stopping)), *rows(parts == stopping), seed=seed)
        for column, k in enumerate(steps):
            values[parts == part, column] = critic.predict(block(k)[parts == part])
    return values


def fit_mlp(
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    left_out: NDArray[np.float32],
    truth: NDArray[np.float32],
    *,
    seed: int,
) -> Any:
    """Fit a perceptron until it gets no better on what is left out; the mean where it never was better.

    scikit-learn's own early stopping leaves out single rows, whose chains it would know from their other steps.
    """
    scaler = StandardScaler()
    x, left_out = scaler.fit_transform(x), scaler.transform(left_out)
    network = MLPRegressor(hidden_layer_sizes=HIDDEN, alpha=MLP_PENALTY, random_state=seed)
    best = DummyRegressor().fit(x, y)
    lowest, since = mean_squared_error(truth, best.predict(left_out)), 0
    for _ in range(EPOCHS):
        network.partial_fit(x, y)  # one pass
        error = mean_squared_error(truth, network.predict(left_out))
        since += 1
        if error < lowest:
            best, lowest, since = copy.deepcopy(network), error, 0
        elif since == PATIENCE:
            break
    return make_pipeline(scaler, best)
