"""Dormant neurons: scores, ratios, persistence, and resets that also clear the optimizer's memory.

Definitions of ReDo (Sokar et al. 2023, arXiv 2302.12902), as TDPO-R measures them: a hidden unit's score is its
mean magnitude after a ReLU over a probe, divided by its layer's mean; tau-dormant means score <= tau.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

THRESHOLDS = (0.0, 0.025, 0.1)
ResetMode = Literal["none", "active", "dormant", "random", "all"]


def dormant_scores(activations: Tensor) -> Tensor:
    """Scores ``[H]`` of activations ``[..., H]``: mean |a_i| over all axes but the last, over the layer's mean.

    A layer without any activity scores 0 everywhere.
    """
    magnitude = activations.float().abs().reshape(-1, activations.shape[-1]).mean(0)
    mean = magnitude.mean()
    return torch.where(
        mean > 0, magnitude / mean.clamp_min(torch.finfo(torch.float32).tiny), torch.zeros_like(magnitude)
    )


def dormant_mask(activations: Tensor, threshold: float) -> Tensor:
    """Which units are dormant, ``[H]`` bool: score <= threshold."""
    return dormant_scores(activations) <= threshold


def persistence(before: Tensor, now: Tensor) -> float | None:
    """|both| / min(|before|, |now|) of two dormant sets ``[H]``; None where one is empty.

    The published code divides sizes of the *masks*, which always reads 100 %.
    """
    smaller = min(int(before.sum()), int(now.sum()))
    return int((before & now).sum()) / smaller if smaller else None


class DormantRecord:
    """Watches the hidden layers of a critic on a fixed probe, record by record."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.previous: dict[str, list[Tensor]] = {}

    def event(self, activations: Sequence[Tensor], when: str) -> dict[str, Any]:
        """The record's "critic" event for activations ``[P, H_l]`` of each hidden layer l.

        Persistence is against the last event of ``when == "record"``, which this one replaces if it is one.
        """
        masks = {str(t).removesuffix(".0"): [dormant_mask(a, t).cpu() for a in activations] for t in THRESHOLDS}
        layers = [
            self._row(name, [a.shape[-1]], {t: [m[k]] for t, m in masks.items()}, k)
            for k, (name, a) in enumerate(zip(self.names, activations, strict=True))
        ]
        everything = self._row("all", [a.shape[-1] for a in activations], masks, None)
        if when == "record":
            self.previous = masks
        return {"when": when, "layers": layers, "all": everything}

    def _row(self, name: str, units: list[int], masks: dict[str, list[Tensor]], layer: int | None) -> dict[str, Any]:
        row: dict[str, Any] = {"layer": name, "units": sum(units), "dormant": {}, "persistence": {}}
        for threshold, now in masks.items():
            before = self.previous.get(threshold)
            row["dormant"][threshold] = int(sum(int(m.sum()) for m in now))
            if before is None:
                row["persistence"][threshold] = None
            else:
                before = before if layer is None else [before[layer]]
                row["persistence"][threshold] = persistence(torch.cat(before), torch.cat(now))
        return row

    def state_dict(self) -> dict[str, Any]:
        return dict(self.previous)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.previous = dict(state)


def choose_units(dormant: Tensor, mode: ResetMode, generator: Generator) -> Tensor:
    """Which units of a layer to reset, ``[H]`` bool. ``random`` takes as many as ``active`` would: the control."""
    if mode == "active":
        return ~dormant
    if mode == "dormant":
        return dormant.clone()
    chosen = torch.zeros_like(dormant)
    if mode == "all":
        chosen[:] = True
    elif mode == "random":
        count = int((~dormant).sum())
        chosen[torch.randperm(len(dormant), generator=generator)[:count]] = True
    return chosen


@torch.no_grad()
def reset_units(
    layers: Sequence[nn.Linear], chosen: Sequence[Tensor], optimizer: torch.optim.Optimizer, std: float,
    generator: Generator, *, outgoing: Literal["noise", "zero"], adam_step: Literal["keep", "zero"],
) -> int:  # fmt: skip
    """Re-draw the chosen hidden units, from the input layer to the output; returns how many.

    Incoming weights ~ N(0, std^2), bias 0; columns of the next layer get noise (TDPO's code) or 0 (ReDo, which
    keeps the function). Adam's moments are cleared for exactly the entries that were written.

    Args:
        layers: all linear layers in order; ``chosen[k]`` ``[H_k]`` belongs to the outputs of ``layers[k]``.
        adam_step: "keep" (TDPO's code) leaves Adam's step count, so the first updates after a reset are about
            three times larger; "zero" restarts the count of the tensors that were touched.
    """
    for k, units in enumerate(chosen):
        layer, following = layers[k], layers[k + 1]
        if not units.any():
            continue

        def noise(shape: torch.Size, layer: nn.Linear = layer) -> Tensor:
            return (torch.randn(shape, generator=generator) * std).to(layer.weight)

        layer.weight[units] = noise(layer.weight[units].shape)
        layer.bias[units] = 0.0
        columns = following.weight[:, units]
        following.weight[:, units] = noise(columns.shape) if outgoing == "noise" else torch.zeros_like(columns)
        for parameter, index in ((layer.weight, units), (layer.bias, units), (following.weight, (slice(None), units))):
            state = optimizer.state.get(parameter, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in state:
                    state[moment][index] = 0.0
            if adam_step == "zero" and "step" in state:
                state["step"].zero_()
    return int(sum(int(units.sum()) for units in chosen))
