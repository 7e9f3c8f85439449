"""What a mitigation of overoptimization is, and how an algorithm meets the mitigations of its run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict

from overopt_bench.compute.processes import World
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.text import read_value
from overopt_bench.types.policy import Policy, Trajectory
from overopt_bench.types.transition import Transition

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.types.algorithm import Algorithm

Hook = Literal["reward", "advantages", "loss", "stop"]


class MitigationParams(BaseModel):
    """Base of every mitigation's parameters: frozen, unknown names refused, ranges checked by pydantic.

    Declare each with ``Field(default, ge=..., description="...")``; one without a default must be given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class LossRows(Protocol):
    """The m rows of a loss to which a penalty may be added: single transitions or whole chains."""

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of the rows, m of them."""
        ...

    @property
    def kl(self) -> Tensor:
        """The exact KL to the base model of each row ``[m]``, in nats, with its graph."""
        ...


@dataclass(frozen=True)
class TransitionRows:
    """The rows of a loss over single transitions, at states that do not depend on the weights (DDPO, TDPO).

    Attributes:
        policy: the policy that is trained.
        transition: p(x_{i+1} | x_i) of the m rows under the current weights, with its graph.
        latents: ``[m, C, h, w]``, x_i of each row.
        steps: ``[m]`` int64, the step index i of each row.
        prompts: the m prompts.
        eta: ``[T]`` noise of each step, where it is not the schedule's own.
    """

    policy: Policy
    transition: Transition
    latents: Tensor
    steps: Tensor
    prompts: Sequence[str]
    eta: Tensor | None = None

    @cached_property
    def kl(self) -> Tensor:
        """The exact KL of each transition to the base model's ``[m]``; costs one pass of the base model."""
        with torch.no_grad(), self.policy.base():
            base = self.policy.transition(self.latents, self.steps, self.prompts, eta=self.eta)
        return self.transition.kl(base)


@dataclass(frozen=True)
class ChainRows:
    """The rows of a loss over whole chains that carry a graph (AlignProp).

    Attributes:
        trajectory: the m chains, drawn with their KL.
    """

    trajectory: Trajectory

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts of the chains, m of them."""
        return self.trajectory.prompts

    @property
    def kl(self) -> Tensor:
        """The exact path KL of each chain ``[m]``; its gradient is that of the steps which carry a graph."""
        return step_kl(self.trajectory).sum(1)


def step_kl(trajectory: Trajectory) -> Tensor:
    """Return the exact KL to the base model of each step of each chain: ``[B, T]``, in nats.

    A deterministic step has none, for its KL would be 0 or infinite; it counts 0 beside the steps that have noise.

    Raises:
        ValueError: where the chains were drawn without their KL; a mitigation that reads it says ``reads_kl = True``.
    """
    if trajectory.kl is None:
        raise ValueError("the chains were drawn without their KL; set `reads_kl = True` on the mitigation's class")
    return trajectory.kl.masked_fill(trajectory.log_probs.isnan(), 0.0)  # both are NaN at deterministic steps


class Mitigation:
    """One change to a training that is meant to hold overoptimization back, for any algorithm that offers its hooks.

    A subclass defines the hooks that it needs, among ``reward``, ``advantages``, ``loss`` and ``stop``, and no others.

    Attributes:
        name: the name on the command line, ``--mitigation NAME:parameter=value,...``.
        summary: the line that ``overopt-bench list`` shows.
        Params: the model of its parameters.
        reads_kl: whether its hooks read ``trajectory.kl``, so that chains must be drawn with it.

    Args:
        policy: the policy that is trained.
        params: the checked parameters, of the class ``Params``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    Params: ClassVar[type[MitigationParams]] = MitigationParams
    reads_kl: ClassVar[bool] = False

    def __init__(self, policy: Policy, params: Any) -> None:
        self.policy = policy
        self.params = params

    @classmethod
    def uses(cls, params: Any) -> frozenset[Hook]:
        """Say which hooks are called with these parameters; all that the class defines, unless it knows better."""
        return frozenset(hook for hook in get_args(Hook) if getattr(cls, hook) is not getattr(Mitigation, hook))

    @classmethod
    def check(cls, algorithm: type[Algorithm], params: Any) -> None:
        """Refuse an algorithm that this mitigation cannot work with; called before anything is loaded.

        Raises:
            UserError: where the algorithm does not offer a hook that is needed.
        """
        offered = algorithm.hooks | ({"stop"} if algorithm.role == "trains" else frozenset[Hook]())
        if absent := sorted(cls.uses(params) - offered):
            raise UserError(
                f"the algorithm {algorithm.name!r} cannot be run with the mitigation {write_mitigation(cls.name, params)!r},"
                f" which acts on {' and '.join(absent)}; it offers {', '.join(sorted(offered)) or 'no such place'}"
            )

    def reward(self, rewards: Tensor, trajectory: Trajectory) -> Tensor:
        """Return the rewards ``[B]`` that the algorithm learns from, given the proxy's scores ``[B]`` of the chains.

        They carry a graph where the algorithm differentiates the proxy. The record keeps the proxy's own scores.
        """
        raise NotImplementedError

    def advantages(self, advantages: Tensor, trajectory: Trajectory) -> Tensor:
        """Return the advantages ``[B, T]`` that the loss sees, given the algorithm's own ``[B, T]``."""
        raise NotImplementedError

    def loss(self, rows: LossRows) -> Tensor:
        """Return the penalty of each row ``[m]``, with its graph; it is added to the loss, in units of the reward."""
        raise NotImplementedError

    def stop(self, metrics: Mapping[str, float]) -> str | None:
        """Say why training should end after a round, given what the round recorded, or None to go on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what changes during training; it is saved with the run."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; the run then goes on bit for bit."""


class Mitigations:
    """The mitigations of one run in the order given; without any, everything passes through unchanged."""

    def __init__(self, members: Iterable[Mitigation] = ()) -> None:
        self.members = tuple(members)
        # what each changed since the last record: its sum over rows, and how many rows
        self._changes = {
            f"mitigation/{one.name}/{hook}": torch.zeros(2, dtype=torch.float64)
            for one in self.members for hook in ("reward", "loss") if hook in one.uses(one.params)
        }  # fmt: skip

    def _using(self, *hooks: Hook) -> list[Mitigation]:
        return [one for one in self.members if one.uses(one.params) & set(hooks)]

    def reads_kl(self, *hooks: Hook) -> bool:
        """Whether chains must be drawn with their KL, for it is read in one of these hooks."""
        return any(one.reads_kl for one in self._using(*hooks))

    def reward(self, rewards: Tensor, trajectory: Trajectory) -> Tensor:
        """Return the rewards ``[B]`` to learn from, given the proxy's scores ``[B]`` of the chains."""
        for one in self._using("reward"):
            changed = one.reward(rewards, trajectory)
            self._note(one, "reward", rewards - changed)
            rewards = changed
        return rewards

    def advantages(self, advantages: Tensor, trajectory: Trajectory) -> Tensor:
        """Return the advantages ``[B, T]`` for the loss, given the algorithm's own ``[B, T]``."""
        for one in self._using("advantages"):
            advantages = one.advantages(advantages, trajectory)
        return advantages

    def penalty(self, rows: LossRows) -> Tensor:
        """Sum the penalties of each row ``[m]``, with their graph; a scalar 0 where there are none."""
        total = torch.zeros(())
        for one in self._using("loss"):
            penalty = one.loss(rows)
            self._note(one, "loss", penalty)
            total = total + penalty
        return total

    def stop(self, metrics: Mapping[str, float]) -> str | None:
        """Say why training should end after this round, by the first mitigation that wants it, or None."""
        reasons = (one.stop(metrics) for one in self._using("stop"))
        return next((reason for reason in reasons if reason is not None), None)

    def _note(self, one: Mitigation, hook: Hook, changes: Tensor) -> None:
        changes = changes.detach().cpu().double()
        self._changes[f"mitigation/{one.name}/{hook}"] += torch.stack([changes.sum(), torch.tensor(len(changes))])

    def take_metrics(self, world: World) -> dict[str, float]:
        """Return what was taken from the reward and added to the loss, a mean over all rows since the last call."""
        means = {}
        for name, change in self._changes.items():
            total, rows = world.sum(change).tolist()
            means[name] = total / rows if rows else 0.0
            self._changes[name] = torch.zeros_like(change)
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each mitigation by its name."""
        return {one.name: one.state_dict() for one in self.members}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``."""
        for one in self.members:
            one.load_state_dict(state[one.name])


def parse_mitigation(text: str) -> tuple[str, dict[str, Any]]:
    """Split ``kl:beta=0.01,where=loss`` into the name and the values: JSON where it parses, else the text itself.

    Raises:
        UserError: where a parameter has no value or comes twice.
    """
    name, _, rest = text.partition(":")
    values: dict[str, Any] = {}
    # a comma begins a new parameter only where a name and `=` follow, so values may hold commas
    for pair in re.split(r",(?=\s*\w+\s*=)", rest) if rest.strip() else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise UserError(f"--mitigation {text!r}: write name:parameter=value, for example --mitigation kl:beta=0.01")
        if key in values:
            raise UserError(f"--mitigation {text!r}: {key} is given twice")
        values[key] = read_value(value)
    return name.strip(), values


def write_mitigation(name: str, params: MitigationParams) -> str:
    """Return the one text that stands for a mitigation in records, labels and folders, all its parameters written."""
    pairs = []
    for key, value in params.model_dump(mode="json").items():
        text = value if isinstance(value, str) else json.dumps(value)
        pairs.append(f"{key}={text}")
    return f"{name}:{','.join(pairs)}" if pairs else name
