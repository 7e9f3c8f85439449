"""AdamW as all algorithms take it: one gradient over all processes, its norm clipped, half precision kept alive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from overopt_bench.world import World


class Optimizer:
    """One optimizer step is any number of ``backward`` calls, whose gradients add up, and one ``step``.

    Args:
        parameters: float32. world: gradients are summed over its processes, so a loss is divided by the *global* batch.
        scaled: multiply losses by a factor that adapts, as float16 passes need: DDPO's gradients, divided by the
            latent's size and the batch, would be rounded to 0 there.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, max_grad_norm: float,
        world: World, scaled: bool = False,
    ) -> None:  # fmt: skip
        self.parameters, self.max_grad_norm, self.world = list(parameters), max_grad_norm, world
        self.adamw = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=weight_decay)
        self.scaler = torch.amp.GradScaler(self.parameters[0].device.type, enabled=scaled)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss."""
        self.scaler.scale(loss).backward()

    def step(self) -> float:
        """Update, and forget the gradient. Returns its norm before clipping; 0 where float16 overflowed and nothing was done."""
        self.world.sum_gradients(self.parameters)
        self.scaler.unscale_(self.adamw)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        self.scaler.step(self.adamw)
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        return norm.item() if not self.scaler.is_enabled() or torch.isfinite(norm) else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
