"""What an algorithm is, and everything that it may touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor, nn

from overopt_bench.compute.optimizer import Optimizer
from overopt_bench.types.mitigation import Hook, Mitigations
from overopt_bench.types.policy import Policy


class AlgorithmParams(BaseModel):
    """Base of every algorithm's parameters: frozen, unknown names refused, ranges checked by pydantic.

    Declare each with ``Field(default, gt=..., description="... [source of the default]")``; a subclass
    may define ``mini: ClassVar[dict[str, Any]]``, the values that differ in the mini suite.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)
    mini: ClassVar[dict[str, Any]] = {}


class MeteredReward(Protocol):
    """The proxy as an algorithm sees it: scoring spends the budget."""

    name: str
    differentiable: bool

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


@dataclass
class TrainContext:
    """Everything that an algorithm may touch. There is no gold reward in it.

    Attributes:
        policy: the policy to update.
        proxy: the metered proxy; one query per image.
        encoder: frozen image features ``[B, 3, H, W] -> [B, D]`` for critics: the proxy's own encoder,
            or the suite's CLIP image tower where it has none. Not metered, not differentiated through.
        feature_dim: D.
        prompts: the training prompts.
        draw_prompts: ``draw_prompts(n, per_prompt)`` gives n training prompts, each repeated
            ``per_prompt`` times in a row (n is a multiple of it), from the "prompts" generator.
        generators: one named generator per purpose: "sampling", "batch" (shuffles, truncation draws),
            "critic" (critic initialisation, resets, dropout), "prompts".
        budget_left: queries that may still be spent (a large number for other budget units).
        micro_batch: samples per pass with a graph, unless an algorithm's own parameter says otherwise.
        optimizers: those that were made here; the harness records the steps that they skip.
        mitigations: of the run; an algorithm calls them in the places that its ``hooks`` name.

    With several processes all see the same numbers and generators; ``policy.world`` says which share is this one's.
    """

    policy: Policy
    proxy: MeteredReward
    encoder: Callable[[Tensor], Tensor]
    feature_dim: int
    prompts: tuple[str, ...]
    draw_prompts: Callable[[int, int], list[str]]
    generators: dict[str, Generator]
    budget_left: Callable[[], int]
    micro_batch: int = 128
    optimizers: list[Optimizer] = field(default_factory=list)
    mitigations: Mitigations = field(default_factory=Mitigations)

    def policy_optimizer(self, lr: float, weight_decay: float, max_grad_norm: float) -> Optimizer:
        """The optimizer of the policy's trainable parameters."""
        scaled = self.policy.dtype == torch.float16
        return self.optimizer(self.policy.trainable(), lr, weight_decay, max_grad_norm, scaled=scaled)

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, max_grad_norm: float, *, scaled: bool = False
    ) -> Optimizer:  # fmt: skip
        """An optimizer of any other float32 parameters, such as a critic's; see ``Optimizer``."""
        made = Optimizer(
            parameters, lr=lr, weight_decay=weight_decay, max_grad_norm=max_grad_norm, world=self.policy.world, scaled=scaled
        )  # fmt: skip
        self.optimizers.append(made)
        return made


@dataclass(frozen=True)
class Candidates:
    """A round of scored base samples: images ``[N, 3, H, W]`` uint8, proxy ``[N]``; n of the whole pool so far."""

    prompts: tuple[str, ...]
    images: Tensor
    proxy: Tensor
    n: int


class Algorithm(ABC):
    """One way to improve a policy by a proxy reward.

    ``Params`` holds the defaults of the paper; ``needs_gradient`` says that the proxy must be
    differentiable; ``summary`` is the one line that ``overopt-bench list`` shows.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Params: ClassVar[type[AlgorithmParams]]
    needs_gradient: ClassVar[bool] = False
    trains: ClassVar[bool] = True  # False: the policy stays the base model
    selects: ClassVar[bool] = False  # True, where it does not train: it picks among base samples
    hooks: ClassVar[frozenset[Hook]] = frozenset({"stop"})  # where it calls its mitigations; the harness asks for stops

    def __init__(self, ctx: TrainContext, params: Any) -> None:
        self.ctx = ctx
        self.params = params

    @abstractmethod
    def step(self) -> dict[str, float]:
        """One round: sample, score, update. Returns scalars for the record, with names from the field."""

    def critic_events(self) -> list[dict[str, Any]]:
        """Critic records (dormant ratios, resets) since the last call; the harness writes them."""
        return []

    def candidates(self) -> Candidates | None:
        """The last round's base samples, for methods that select instead of training."""
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy's weights and the generators: optimizers, critics, statistics."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; the run then goes on bit for bit."""
