"""What a critic could explain: variance of returns on prompts that it was not fitted on, by cross-validation.

Chains of one prompt stay together, in the folds that measure as in those that choose a penalty or when to stop, for they
share what a prompt looks like and the steps of one chain share their return.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_squared_error
from sklearn.model_selection import GroupKFold, GroupShuffleSplit
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from overopt_bench.compute.moments import explained_variance

Critic = Literal["linear", "mlp"]
Inputs = Literal["features", "features, step", "features, a model a step", "features, step, prompt"]
Numbers = NDArray[np.float64]
Fit = Callable[[Numbers, Numbers, NDArray[np.int64]], Any]  # inputs [R, D], returns [R], groups [R] to what predicts

FOLDS = 5
PENALTIES = np.logspace(0, 6, 7)  # of standardised inputs; with the last one next to nothing is explained
HIDDEN = (64,)
MLP_PENALTY = 1e-3
EPOCHS, PATIENCE = 200, 10  # passes over the data at most, and without an improvement


@dataclass(frozen=True)
class Explained:
    """The share of the variance of returns that a kind of critic explains on unseen prompts.

    All are 1 - Var(G - V) / Var(G): 1 is everything, 0 nothing, and below 0 the critic does harm.

    Attributes:
        critic: linear, by ridge regression, or a multilayer perceptron.
        inputs: what it sees, and whether there is one model or one for each step.
        pooled: over all steps together.
        steps: by denoising step, the noisiest first.
        trained: the mean over the steps that are trained on.
    """

    critic: Critic
    inputs: Inputs
    pooled: float
    steps: tuple[float, ...]
    trained: float


def explain(
    features: Numbers, returns: Numbers, groups: NDArray[np.int64], prompts: Numbers, *, trained_steps: int, seed: int
) -> list[Explained]:
    """Measure every kind of critic, in one thread.

    Args:
        features: ``[N, T, D]`` of each step's input.
        returns: ``[N]`` of the chains, normalised within prompts.
        groups: ``[N]`` numbers of the prompts, ``FOLDS`` different ones at least.
        prompts: ``[N, P]`` embeddings of the prompts.
        trained_steps: how many steps, from the noisiest on, are trained on.
        seed: of the perceptron's weights, batches and choice of prompts to stop by.
    """
    n, steps, _ = features.shape
    step = np.broadcast_to(np.eye(steps), (n, steps, steps))
    prompt = np.broadcast_to(prompts[:, None], (n, steps, prompts.shape[1]))
    seen: dict[Inputs, Numbers] = {
        "features": features,
        "features, step": np.concatenate([features, step], 2),
        "features, step, prompt": np.concatenate([features, step, prompt], 2),
    }
    fits: dict[Critic, Fit] = {"linear": fit_linear, "mlp": partial(fit_mlp, seed=seed)}
    rows = []
    with threadpool_limits(limits=1):  # sums in one order, so that the numbers are the same twice
        for critic, fit in fits.items():
            values = {inputs: held_out_values(fit, x, returns, groups) for inputs, x in seen.items()}
            if critic == "linear":  # for a perceptron a chain's worth of data would be too little
                each = [held_out_values(fit, features[:, k : k + 1], returns, groups) for k in range(steps)]
                values["features, a model a step"] = np.concatenate(each, 1)
            rows += [_explained(critic, inputs, returns, v, trained_steps) for inputs, v in values.items()]
    return rows


def _explained(critic: Critic, inputs: Inputs, returns: Numbers, values: Numbers, trained_steps: int) -> Explained:
    v = torch.from_numpy(values)
    g = torch.from_numpy(returns)[:, None].expand_as(v)  # [N, T], gamma 1
    steps = tuple(explained_variance(g[:, k], v[:, k]) for k in range(v.shape[1]))
    return Explained(critic, inputs, explained_variance(g, v), steps, float(np.mean(steps[:trained_steps])))


def held_out_values(fit: Fit, inputs: Numbers, returns: Numbers, groups: NDArray[np.int64]) -> Numbers:
    """Values ``[N, T]`` of inputs ``[N, T, D]``, each by the model of a fold that was fitted without its prompt."""
    n, steps, width = inputs.shape
    values = np.empty((n, steps))
    for fitted, held in GroupKFold(FOLDS).split(returns, groups=groups):
        own = inputs[fitted].reshape(-1, width), returns[fitted].repeat(steps), groups[fitted].repeat(steps)
        values[held] = fit(*own).predict(inputs[held].reshape(-1, width)).reshape(-1, steps)
    return values


def fit_linear(inputs: Numbers, returns: Numbers, groups: NDArray[np.int64]) -> Any:
    """Fit by ridge regression on standardised inputs, with the penalty that is best on prompts left out of these."""
    scaler = StandardScaler().fit(inputs)
    x, y = scaler.transform(inputs), returns[:, None].repeat(len(PENALTIES), 1)  # all penalties are tried in one fit
    errors = np.zeros(len(PENALTIES))
    for own, left_out in GroupKFold(min(FOLDS, len(np.unique(groups)))).split(x, groups=groups):
        values = Ridge(alpha=PENALTIES).fit(x[own], y[own]).predict(x[left_out])
        errors += ((values - y[left_out]) ** 2).sum(0)
    return make_pipeline(scaler, Ridge(alpha=PENALTIES[errors.argmin()]).fit(x, returns))


def fit_mlp(inputs: Numbers, returns: Numbers, groups: NDArray[np.int64], *, seed: int) -> Any:
    """Fit a perceptron until it gets no better on a fifth of these prompts; the mean where it never was better.

    scikit-learn's own early stopping leaves out single rows, whose chains it would know from their other steps.
    """
    (own, left_out), *_ = GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(inputs, groups=groups)
    scaler = StandardScaler().fit(inputs[own])
    x, y = scaler.transform(inputs[own]), returns[own]
    held, truth = scaler.transform(inputs[left_out]), returns[left_out]
    network = MLPRegressor(hidden_layer_sizes=HIDDEN, alpha=MLP_PENALTY, random_state=seed)
    best = DummyRegressor().fit(x, y)
    lowest, since = mean_squared_error(truth, best.predict(held)), 0
    for _ in range(EPOCHS):
        network.partial_fit(x, y)  # one pass
        error = mean_squared_error(truth, network.predict(held))
        since += 1
        if error < lowest:
            best, lowest, since = copy.deepcopy(network), error, 0
        elif since == PATIENCE:
            break
    return make_pipeline(scaler, best)
