"""AdamW as all algorithms take it: one gradient over all processes, its norm clipped, half precision kept alive."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from overopt_bench.compute.processes import World
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

MAX_SKIPPED = 10  # steps in a row: float16's loss scale has been halved as often by then, and it is no longer the cause


class Optimizer:
    """AdamW whose step is taken with the gradient of all processes, so that every process takes the same.

    One optimizer step is any number of ``backward`` or ``backward_part`` calls, whose gradients add up, and one ``step``,
    which averages them over processes. An algorithm that computes its whole loss on every process and knows nothing of
    the others (``backward``) therefore takes the step that it takes alone; one that shares its rows out
    (``backward_part``) takes it too.

    A step whose gradient is not finite is skipped and counted, in every precision; ``MAX_SKIPPED`` in a row are an error.
    All processes skip the same steps, for they see the same averaged gradient.

    Args:
        parameters: float32.
        lr: learning rate.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: the norm to which gradients are clipped, over all parameters.
        world: the processes whose gradients are averaged.
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
        # makes the scaler's factor, which a process without a single backward call needs too
        self.scaler.scale(self.parameters[0].new_zeros(()))
        self.skipped_in_a_row, self._skipped = 0, 0

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar loss that every process computes whole."""
        self.scaler.scale(loss).backward()

    def backward_part(self, loss: Tensor) -> None:
        """Add the gradient of this process's part of a loss, of which all processes' parts are the sum.

        It is for rows shared out by ``World.parts``, each loss divided by the number of rows of all processes.
        """
        self.backward(loss * self.world.size)

    def step(self) -> float:
        """Average the gradient over processes, update, and forget it.

        Returns:
            The gradient's norm before clipping; 0 where it was not finite and nothing was changed.

        Raises:
            FloatingPointError: where that happened ``MAX_SKIPPED`` times in a row.
        """
        self.world.average_gradients(self.parameters)
        self.scaler.unscale_(self.adamw)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            self.scaler.step(self.adamw)
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
            self._skipped += 1
        self.scaler.update()
        self.adamw.zero_grad(set_to_none=True)
        if self.skipped_in_a_row >= MAX_SKIPPED:
            raise FloatingPointError(f"the gradient was not finite in {MAX_SKIPPED} optimizer steps in a row")
        return norm if finite else 0.0

    def take_skipped(self) -> int:
        """Return how many steps were skipped since the last call."""
        skipped, self._skipped = self._skipped, 0
        return skipped

    def state_dict(self) -> dict[str, Any]:
        return {
            "adamw": self.adamw.state_dict(), "scaler": self.scaler.state_dict(), "skipped_in_a_row": self.skipped_in_a_row
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)  # checkpoints did not always hold it
