"""The periodic part of TDPO and TDPO-R: measure the critic's dormant neurons on a fixed probe, and reset some."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from overopt_bench.algorithms.critic import TemporalCritic
from overopt_bench.algorithms.neurons import DormantRecord, ResetMode, choose_units, dormant_mask, reset_units


class Recycler:
    """Keeps the probe, the records and the epoch count; resets when its mode says so.

    The probe is drawn once, from the first epoch's features, with every timestep in equal share: "dormant"
    depends on the inputs and on their number.

    Args:
        params: uses ``probe_size`` and, where there are any, TDPO-R's reset parameters.
        generator: of reset noise; the run's own, where the published code re-seeds so that all resets are alike.
    """

    def __init__(
        self, critic: TemporalCritic, optimizer: torch.optim.Optimizer, params: Any, generator: Generator
    ) -> None:
        self.critic, self.optimizer, self.params, self.generator = critic, optimizer, params, generator
        self.mode: ResetMode = getattr(params, "reset", "none")
        self.record = DormantRecord([str(k) for k in range(len(params.critic_hidden))])
        self.probe: Tensor | None = None
        self.epoch = 0
        self._events: list[dict[str, Any]] = []

    def end_of_epoch(self, features: Tensor) -> None:
        """Record, and reset if it is time. features: ``[N, T, D]`` of the epoch; only the first epoch's are kept."""
        if self.probe is None:
            self.probe = self._stratified(features)
        self.epoch += 1
        self.critic.eval()
        self._events.append(self.record.event(self.critic.probe(self.probe), "record"))
        if self.mode != "none" and self.epoch % self.params.reset_period == 0:
            self._reset(self.probe)

    def _stratified(self, features: Tensor) -> Tensor:
        samples, steps = features.shape[:2]
        step = torch.arange(self.params.probe_size) % steps
        sample = torch.randint(samples, (self.params.probe_size,), generator=self.generator)
        return features[sample, step].float().clone()

    def _reset(self, probe: Tensor) -> None:
        activations = self.critic.probe(probe)
        self._events.append(self.record.event(activations, "before_reset"))
        dormant = [dormant_mask(a, self.params.dormant_threshold) for a in activations]
        chosen = [choose_units(d, self.mode, self.generator) for d in dormant]
        count = reset_units(
            self.critic.linear_layers(), chosen, self.optimizer, self.critic.std, self.generator,
            outgoing=self.params.reset_outgoing, adam_step=self.params.reset_adam_step,
        )  # fmt: skip
        self._events.append({**self.record.event(self.critic.probe(probe), "after_reset"), "reset_units": count})

    def take_events(self) -> list[dict[str, Any]]:
        """The records since the last call."""
        events, self._events = self._events, []
        return events

    def state_dict(self) -> dict[str, Any]:
        return {"probe": self.probe, "epoch": self.epoch, "record": self.record.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.critic.linear_layers()[0].weight.device  # a checkpoint is read onto the CPU
        self.probe = None if state["probe"] is None else state["probe"].to(device)
        self.epoch = state["epoch"]
        self.record.load_state_dict(state["record"])
