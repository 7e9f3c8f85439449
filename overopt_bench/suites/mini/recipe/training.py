"""The one training loop of the recipe: seeded, resumable, with an exponential moving average and progress."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
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
    average = copy.deepcopy(module)
    generator = generator_for(seed, name)
    step, losses = 0, []
    if path.exists():
        state = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        step, losses = state["step"], state["losses"]
    started, first, saved = time.monotonic(), step, time.monotonic()
    module.train()
    while step < steps:
        warm = min(1.0, (step + 1) / max(1, steps // 50))
        for group in optimizer.param_groups:
            group["lr"] = lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        value = loss(module, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        losses = [*losses, value.item()][-max(1, steps // 10) :]
        decay = min(ema, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(average.parameters(), module.parameters(), strict=True):
                a.data.lerp_(p.data, 1 - decay)
            for old, new in zip(average.buffers(), module.buffers(), strict=True):
                old.copy_(new)
        if step % max(1, steps // 50) == 0:
            left = (time.monotonic() - started) / (step - first) * (steps - step)
            print(
                f"{name}: step {step}/{steps}  loss {sum(losses[-50:]) / len(losses[-50:]):.4f}  {left / 60:.1f} min left",
                flush=True,
            )
        if step == steps or time.monotonic() - saved > save_seconds:
            state = {
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(
                {**state, "generator": generator.get_state(), "step": step, "losses": losses}, path.with_suffix(".tmp")
            )
            os.replace(path.with_suffix(".tmp"), path)
            saved = time.monotonic()
    module.load_state_dict(average.state_dict())
    module.eval().requires_grad_(False)
    return sum(losses) / max(1, len(losses))
