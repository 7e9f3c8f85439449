"""What an algorithm is, and everything that it may touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, ConfigDict

from overopt_bench.compute.optimizer import Optimizer
from overopt_bench.lazy import torch
from overopt_bench.types.mitigation import Hook, Mitigations
from overopt_bench.types.policy import Policy

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn


class AlgorithmParams(BaseModel):
    """The parameters of an algorithm: frozen, unknown names refused, ranges checked by pydantic.

    Declare each with ``Field(default, gt=..., description="... [source of the default]")``; the default is the paper's.
    What a suite sets otherwise stands with the suite (``Suite.settings``). Parameters are science: what changes only
    time and memory, such as micro-batches, is an option of the machine and reaches an algorithm through ``TrainContext``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


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
        micro_batch: samples per pass with a graph; changes memory and speed, no result.
        checkpoint: whether to recompute activations in the backward pass; changes memory and speed, no result.
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
    checkpoint: bool = False
    optimizers: list[Optimizer] = field(default_factory=list)
    mitigations: Mitigations = field(default_factory=Mitigations)

    def policy_optimizer(self, lr: float, weight_decay: float, max_grad_norm: float) -> Optimizer:
        """Make the optimizer of the policy's trainable parameters; see ``Optimizer``."""
        scaled = self.policy.dtype == torch.float16
        return self.optimizer(self.policy.trainable(), lr, weight_decay, max_grad_norm, scaled=scaled)

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, max_grad_norm: float, *, scaled: bool = False
    ) -> Optimizer:  # fmt: skip
        """Make an optimizer of any other float32 parameters, such as a critic's; see ``Optimizer``."""
        made = Optimizer(
            parameters, lr=lr, weight_decay=weight_decay, max_grad_norm=max_grad_norm, world=self.policy.world, scaled=scaled
        )  # fmt: skip
        self.optimizers.append(made)
        return made


@dataclass(frozen=True)
class ImageCost:
    """What a round computes for each image that the proxy scores, beside drawing, decoding and scoring it.

    From it the harness computes FLOPs, memory and the bare passes that ``bench`` compares a round with. All counts are
    means over the images of a round and may be fractions.

    Attributes:
        predicted: latents that go through the U-Net once more without a graph, such as those of a reference policy.
        trained: latents that go through the U-Net once more with a graph and back, each by itself: single transitions
            of a chain, counted again in every pass over the samples.
        backpropagated: last steps of the sampler that keep their graph. Where it is above 0 the gradient passes through
            the reward and the decoder too.
        encoded: latents that are decoded and shown to ``TrainContext.encoder``.
    """

    predicted: float = 0.0
    trained: float = 0.0
    backpropagated: float = 0.0
    encoded: float = 0.0


Role = Literal["trains", "selects", "stays"]


class Algorithm(ABC):
    """One way to improve a policy by a proxy reward; all that the harness knows of it stands on its class.

    Attributes:
        name: the name on the command line and in records.
        title: the name in sentences and figures, as in its paper; where it is empty, ``name``.
        summary: the one line that ``overopt-bench list`` shows.
        paper: the arXiv number, such as "2305.13301", by which reports order algorithms; empty where there is none.
        Params: the parameters, with the defaults of the paper.
        role: "trains" updates the policy; "selects" leaves it alone and picks among the base model's samples (a
            subclass of ``Selection``); "stays" leaves it alone and spends nothing.
        needs_gradient: whether the proxy must be differentiable.
        recomputes: whether activations are recomputed in the backward pass where neither the user nor the suite says
            otherwise, because the authors do so.
        steady: parameters with which every round costs the same, for timing.
        hooks: the places of a round where it calls ``TrainContext.mitigations``; the harness asks for stops itself.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    Params: ClassVar[type[AlgorithmParams]]
    role: ClassVar[Role] = "trains"
    needs_gradient: ClassVar[bool] = False
    recomputes: ClassVar[bool] = False
    steady: ClassVar[Mapping[str, Any]] = {}
    hooks: ClassVar[frozenset[Hook]] = frozenset()

    def __init__(self, ctx: TrainContext, params: Any) -> None:
        self.ctx = ctx
        self.params = params

    @classmethod
    def cost(cls, params: Any, num_steps: int) -> ImageCost:
        """Say what a round computes for each image; override it, or ``doctor`` and ``bench`` count the sampling alone.

        Args:
            params: an instance of ``Params``.
            num_steps: T, the denoising steps of a chain.
        """
        return ImageCost()

    @abstractmethod
    def step(self) -> dict[str, float]:
        """Do one round: sample, score, update.

        Returns:
            Scalars for the record, with names from the field, such as "proxy/mean" and "loss". Where there are several
            updates of the policy in a round, "optimizer_steps" says how many; ``bench`` then times passes that are as short.
        """

    def critic_events(self) -> list[dict[str, Any]]:
        """Take the critic's records (dormant ratios, resets) since the last call; the harness writes them."""
        return []

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return everything but the policy's weights and the generators: optimizers, critics, statistics."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore ``state_dict``; the run then goes on bit for bit."""


@dataclass(frozen=True)
class Candidates:
    """A round of scored base samples: N prompts, images ``[N, 3, H, W]`` uint8 and the proxy's scores ``[N]``."""

    prompts: tuple[str, ...]
    images: Tensor
    proxy: Tensor


class Selection(Algorithm):
    """A method that does not train: it picks among the base model's samples by the proxy.

    The harness keeps a pool of all candidates with the scores of every reward, and evaluates the method by the weights
    that it gives to the pool of each prompt.
    """

    role = "selects"

    @abstractmethod
    def candidates(self) -> Candidates:
        """Return the samples of the last round."""

    @property
    @abstractmethod
    def n(self) -> int:
        """The number of samples of which one is kept, for all that was drawn so far."""

    @abstractmethod
    def weights(self, pool: int) -> Tensor:
        """Return the weight ``[pool]`` of each sample of a prompt, sorted by the proxy in ascending order; the sum is 1."""

    @abstractmethod
    def kl(self) -> float:
        """Return the KL divergence of the kept sample from the base model, in nats."""
