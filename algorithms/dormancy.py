"""Dormant neurons of a critic: scores, a record over training, and resets that also clear the optimizer's memory.

Definitions of ReDo (Sokar et al. 2023, arXiv 2302.12902), as TDPO-R measures them: a hidden unit's score is its
mean magnitude after a ReLU over a probe, divided by its layer's mean; tau-dormant means score <= tau.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from overopt_bench.compute.moments import explained_by_step, explained_variance
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

    from overopt_bench.algorithms.critic import TemporalCritic

THRESHOLDS = (0.0, 0.025, 0.1)
ResetMode = Literal["none", "active", "dormant", "random", "all"]


def dormant_scores(activations: Tensor) -> Tensor:
    """Compute the scores ``[H]`` of activations ``[..., H]``: mean |a_i| over all axes but the last, over the layer's mean.

    A layer without any activity scores 0 everywhere.
    """
    # s_i = E_x |h_i(x)| / mean_k E_x |h_k(x)| [ReDo]
    magnitude = activations.float().abs().reshape(-1, activations.shape[-1]).mean(0)
    mean = magnitude.mean()
    return torch.where(
        mean > 0, magnitude / mean.clamp_min(torch.finfo(torch.float32).tiny), torch.zeros_like(magnitude)
    )


def dormant_mask(activations: Tensor, threshold: float) -> Tensor:
    """Return which units are dormant, ``[H]`` bool: score <= threshold."""
    return dormant_scores(activations) <= threshold


def persistence(before: Tensor, now: Tensor) -> float | None:
    """Compute |both| / min(|before|, |now|) of two dormant sets ``[H]``; None where one is empty.

    The published code divides sizes of the *masks*, which always reads 100 %.
    """
    smaller = min(int(before.sum()), int(now.sum()))
    return int((before & now).sum()) / smaller if smaller else None


class DormantRecord:
    """A record of the dormant units of each hidden layer of a critic, each entry compared with the one before."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.previous: dict[str, list[Tensor]] = {}

    def event(self, activations: Sequence[Tensor], when: str) -> dict[str, Any]:
        """Write the record's "critic" event for activations ``[P, H_l]`` of each hidden layer l.

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


class Dormancy:
    """What becomes of a critic: its dormant neurons on a probe, and what it explains, recorded once an epoch.

    The probe has every timestep in equal share: "dormant" depends on the inputs and on their number. It is drawn from the
    first epoch's features and kept, so that records are of one measure, or anew from each epoch's as in TDPO's code.

    Args:
        critic: the critic to watch.
        probe_size: P, how many features the probe has.
        generator: the run's own, from which the probe is drawn.
        redrawn: whether it is drawn anew each epoch.
    """

    def __init__(self, critic: TemporalCritic, probe_size: int, generator: Generator, *, redrawn: bool = False) -> None:
        self.critic, self.probe_size, self.generator, self.redrawn = critic, probe_size, generator, redrawn
        self.history = DormantRecord([str(k) for k in range(len(critic.linear_layers()) - 1)])
        self.probe: Tensor | None = None
        self._epoch: tuple[Tensor, Tensor] | None = None  # features and returns of the epoch that ended last
        self._events: list[dict[str, Any]] = []

    def end_of_epoch(self, features: Tensor, returns: Tensor) -> None:
        """Record the critic at the end of an epoch, whose features ``[N, T, D]`` and returns ``[N, T]`` these are."""
        self._epoch = features, returns
        if self.probe is None or self.redrawn:
            samples, steps = features.shape[:2]
            step = torch.arange(self.probe_size) % steps
            sample = torch.randint(samples, (self.probe_size,), generator=self.generator)
            self.probe = features[sample, step].float().clone()
        self.note("record")

    def activations(self) -> list[Tensor]:
        """Return each hidden layer's activations on the probe, ``[P, H_l]``, without dropout.

        Raises:
            RuntimeError: before the end of the first epoch, when there is no probe.
        """
        if self.probe is None:
            raise RuntimeError("dormant neurons are measured from the end of the first epoch on")
        self.critic.eval()
        return self.critic.probe(self.probe)

    def dormant(self, threshold: float) -> list[Tensor]:
        """Return which units of each hidden layer are dormant now, ``[H_l]`` bool."""
        return [dormant_mask(layer, threshold) for layer in self.activations()]

    def explained(self) -> dict[str, Any]:
        """Return what the critic as it is now, without dropout, explains of the returns of the epoch that ended last.

        It was fitted to these returns; the train rows have what it explained of them before.

        Raises:
            RuntimeError: before the end of the first epoch.
        """
        if self._epoch is None:
            raise RuntimeError("what a critic explains is measured from the end of the first epoch on")
        features, returns = self._epoch
        with torch.no_grad():
            values = self.critic.eval()(features)
        return {
            "explained_variance": explained_variance(returns, values),
            "explained_variance_by_step": explained_by_step(returns, values),
        }

    def note(self, when: str, **more: int) -> None:
        """Add a record of the critic as it is now, with ``more`` beside it."""
        self._events.append({**self.history.event(self.activations(), when), **self.explained(), **more})

    def take_events(self) -> list[dict[str, Any]]:
        """Return the records since the last call."""
        events, self._events = self._events, []
        return events

    def state_dict(self) -> dict[str, Any]:
        """Return the probe and what the next record is compared with."""
        return {"probe": self.probe, "record": self.history.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        device = self.critic.linear_layers()[0].weight.device  # a checkpoint is read onto the CPU
        self.probe = None if state["probe"] is None else state["probe"].to(device)
        self.history.load_state_dict(state["record"])


def choose_units(dormant: Tensor, mode: ResetMode, generator: Generator) -> Tensor:
    """Choose the units of a layer to reset, ``[H]`` bool. ``random`` takes as many as ``active`` would: the control."""
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


def reset_units(
    layers: Sequence[nn.Linear], chosen: Sequence[Tensor], optimizer: torch.optim.Optimizer, std: float,
    generator: Generator, *, outgoing: Literal["noise", "zero"], adam_step: Literal["keep", "zero"],
) -> int:  # fmt: skip
    """Re-draw the chosen hidden units, from the input layer to the output; returns how many.

    Incoming weights ~ N(0, std^2), bias 0; columns of the next layer get noise (TDPO's code) or 0 (ReDo, which
    keeps the function). Adam's moments are cleared for exactly the entries that were written.

    Args:
        layers: all linear layers in order.
        chosen: for each hidden layer k the units ``[H_k]`` bool among the outputs of ``layers[k]``.
        optimizer: Adam or AdamW of these layers.
        std: the deviation of fresh weights.
        generator: of the fresh weights.
        outgoing: what the columns of the next layer become, "noise" or "zero".
        adam_step: "keep" (TDPO's code) leaves Adam's step count, so the first updates after a reset are about
            three times larger; "zero" restarts the count of the tensors that were touched.
    """
    with torch.no_grad():
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
            for parameter, index in (
                (layer.weight, units),
                (layer.bias, units),
                (following.weight, (slice(None), units)),
            ):
                state = optimizer.state.get(parameter, {})
                for moment in ("exp_avg", "exp_avg_sq"):
                    if moment in state:
                        state[moment][index] = 0.0
                if adam_step == "zero" and "step" in state:
                    state["step"].zero_()
    return int(sum(int(units.sum()) for units in chosen))
