"""What training may spend, and the meter around the proxy that counts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from torch import Tensor

from overopt_bench.compute.processes import World
from overopt_bench.evaluation.scoring import all_scores, checked
from overopt_bench.options import BudgetUnit
from overopt_bench.types import Reward


class Budget:
    """A counter of reward queries, U-Net evaluations and seconds of training, one of which is limited.

    Args:
        unit: which one is limited.
        total: its limit.
        nfe: reads the policy's counter of U-Net evaluations.
    """

    def __init__(self, unit: BudgetUnit, total: int, nfe: Callable[[], int]) -> None:
        self.unit, self.total, self._nfe = unit, total, nfe
        self.queries, self.seconds, self.uncounted_nfe = 0, 0.0, 0

    @property
    def nfe(self) -> int:
        """The U-Net evaluations spent on training; those of evaluation are not counted."""
        return self._nfe() - self.uncounted_nfe

    @property
    def spent(self) -> float:
        """What is spent, in the budget's own unit."""
        return {"queries": self.queries, "nfe": self.nfe, "seconds": self.seconds}[self.unit]

    @property
    def exhausted(self) -> bool:
        """Whether training must stop."""
        return self.spent >= self.total

    def queries_left(self) -> int:
        """Count the queries that may still be spent; without practical limit for the other units."""
        return self.total - self.queries if self.unit == "queries" else sys.maxsize

    def forfeit(self) -> None:
        """Leave the rest unspent: a method without training stands at the end of the axis beside the others."""
        self.queries = self.total if self.unit == "queries" else self.queries
        self.seconds = self.total if self.unit == "seconds" else self.seconds
        self.uncounted_nfe = self._nfe() - self.total if self.unit == "nfe" else self.uncounted_nfe

    def state_dict(self) -> dict[str, float]:
        """Return the counters, to go on from."""
        return {"queries": self.queries, "nfe": self.nfe, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore the counters; the policy's own starts anew, so the difference is kept here."""
        self.queries, self.seconds = int(state["queries"]), float(state["seconds"])
        self.uncounted_nfe = self._nfe() - int(state["nfe"])


class Metered:
    """A meter around the proxy, as which an algorithm sees it: each image scored is a query spent.

    With several processes, images without a graph are the whole batch on each: the scoring is shared out. Images with
    a graph are a process's own share. Either way a process counts what it scored; the harness adds up after a step.
    """

    def __init__(self, reward: Reward, budget: Budget, world: World) -> None:
        self._reward, self._budget, self._world = reward, budget, world
        self.name, self.differentiable = reward.name, reward.differentiable

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score images and count them.

        Args:
            images: ``[B, 3, H, W]`` in [0, 1].
            prompts: B prompts.

        Returns:
            Scores ``[B]``, with a graph where the images have one.

        Raises:
            RuntimeError: where the budget does not hold B more queries; an algorithm must ask ``budget_left``.
            FloatingPointError: where a score is not finite.
        """
        if len(images) > self._budget.queries_left():
            raise RuntimeError(f"{len(images)} images to score but {self._budget.queries_left()} queries left")
        if images.requires_grad:
            self._budget.queries += len(images)
            return checked(self._reward(images, prompts), self.name, prompts)
        self._budget.queries += len(self._world.share(len(images)))
        return all_scores({self.name: self._reward}, images, prompts, self._world)[self.name]
