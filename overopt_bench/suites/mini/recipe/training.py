"""The one training loop of the recipe: seeded, resumable, with an exponential moving average and progress."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Generator, Tensor, nn


def generator_for(seed: int, purpose: str) -> Generator:
    """A generator that depends only on the recipe's seed and a name."""
    from overopt_bench.seeding import stable_seed

    return Generator().manual_seed(stable_seed(seed, "recipe", purpose))


def seeded(seed: int, purpose: str, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose initial weights depend only on (seed, purpose)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, purpose).initial_seed())
        return build()


@dataclass
class _Stage:
    """Everything that one training stage is, and that its checkpoint holds."""

    module: nn.Module
    average: nn.Module  # exponential moving average of the module
    optimizer: torch.optim.Optimizer
    generator: Generator
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the newest steps

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all."""
        state = {name: getattr(self, name).state_dict() for name in ("module", "average", "optimizer")}
        rest = {"generator": self.generator.get_state(), "step": self.step, "losses": self.losses}
        torch.save({**state, **rest}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = torch.load(path, weights_only=True)
        for name in ("module", "average", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        self.step, self.losses = state["step"], state["losses"]

    def update(self, loss: Callable[[nn.Module, Generator], Tensor], lr: float, steps: int, ema: float) -> None:
        """Take one optimizer step at the warmed-up, decayed learning rate, and let the average follow."""
        warm = min(1.0, (self.step + 1) / max(1, steps // 50))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * self.step / steps))
        value = loss(self.module, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_([p for p in self.module.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.step += 1
        self.losses = [*self.losses, value.item()][-max(1, steps // 10) :]
        decay = min(ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for a, p in zip(self.average.parameters(), self.module.parameters(), strict=True):
                a.data.lerp_(p.data, 1 - decay)
            for old, new in zip(self.average.buffers(), self.module.buffers(), strict=True):
                old.copy_(new)


def fit(
    name: str,
    module: nn.Module,
    loss: Callable[[nn.Module, Generator], Tensor],
    *,
    work: Path,
    seed: int,
    steps: int,
    lr: float,
    ema: float = 0.995,
    weight_decay: float = 0.01,
    save_seconds: float = 60.0,
) -> float:
    """Minimise ``loss(module, generator)`` with AdamW, warm-up and cosine decay; leave the EMA weights in place.

    A finished stage is loaded rather than trained again; an interrupted one goes on from ``work/<name>.pt``.

    Returns:
        The mean loss over the last tenth of the steps.
    """
    path = work / f"{name}.pt"
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    stage = _Stage(module, copy.deepcopy(module), optimizer, generator_for(seed, name))
    if path.exists():
        stage.load(path)
    started, first, saved = time.monotonic(), stage.step, time.monotonic()
    module.train()
    while stage.step < steps:
        stage.update(loss, lr, steps, ema)
        if stage.step % max(1, steps // 50) == 0:
            left = (time.monotonic() - started) / (stage.step - first) * (steps - stage.step)
            recent = sum(stage.losses[-50:]) / len(stage.losses[-50:])
            print(f"{name}: step {stage.step}/{steps}  loss {recent:.4f}  {left / 60:.1f} min left", flush=True)
        if stage.step == steps or time.monotonic() - saved > save_seconds:
            stage.save(path)
            saved = time.monotonic()
    module.load_state_dict(stage.average.state_dict())
    module.eval().requires_grad_(False)
    return sum(stage.losses) / max(1, len(stage.losses))
