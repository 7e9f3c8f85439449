"""The nouns that algorithms, rewards and the harness share.

Axes: ``B`` samples, ``T`` denoising steps, ``C h w`` latent, ``H W`` pixels, ``D`` features.
Steps are counted in *sampling order*: ``i = 0`` is the noisiest, ``latents[:, i]`` is the input
of step ``i`` and ``latents[:, i + 1]`` its output.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Generator, Tensor, nn

from overopt_bench.optimizer import Optimizer
from overopt_bench.pictures import square
from overopt_bench.transition import Transition
from overopt_bench.weights import Repo
from overopt_bench.world import World

if TYPE_CHECKING:
    from PIL.Image import Image

    from overopt_bench.costs import Architecture


@dataclass(frozen=True)
class Trajectory:
    """A batch of sampled denoising chains.

    Attributes:
        prompts: the B prompts.
        latents: ``[B, T+1, C, h, w]`` float32; ``latents[:, 0]`` is the initial noise. Detached.
        timesteps: ``[T]`` int64, the scheduler's timesteps in sampling order.
        log_probs: ``[B, T]`` float32 nats, summed over latent dimensions, stored at sampling. Detached.
        images: ``[B, 3, H, W]`` in [0, 1]; carries a graph only when the rollout was differentiable.
    """

    prompts: tuple[str, ...]
    latents: Tensor
    timesteps: Tensor
    log_probs: Tensor
    images: Tensor


class Policy(Protocol):
    """A diffusion model seen as a Markov chain of Gaussian transitions (DDPO, section 4.1)."""

    num_steps: int  # T
    world: World  # the processes that share the work
    dtype: torch.dtype  # of the network passes
    latent_shape: tuple[int, int, int]  # C, h, w
    nfe: int  # U-Net evaluations so far: one per latent and per guidance branch
    device: torch.device

    def rollout(self, prompts: Sequence[str], generator: Generator) -> Trajectory:
        """Draw one image per prompt, without a graph; in micro-batches, shared among processes."""
        ...

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        """Noise of n chains ``[T+1, n, C, h, w]``, drawn chain by chain: the initial latent, then one a step."""
        ...

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False
    ) -> Trajectory:
        """Chains of given noise ``[T+1, B, C, h, w]`` in one pass, with a graph (truncated backpropagation).

        Args:
            grad_from: first step whose prediction keeps its graph; ``images`` is differentiable with respect to the
                trainable parameters. checkpoint: recompute activations in the backward pass instead of storing them.
        """
        ...

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False
    ) -> Transition:
        """p(x_{i+1} | x_i, prompt) under the current weights, with a graph when gradients are enabled.

        Args:
            latents: ``[B, C, h, w]`` x_i. steps: ``[B]`` int64, each sample's own step index i.
            checkpoint: recompute activations in the backward pass instead of storing them.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1]; differentiable."""
        ...

    def base(self) -> AbstractContextManager[None]:
        """Inside this context the adapter is off: the policy is the base model."""
        ...

    def trainable(self) -> list[nn.Parameter]:
        """The float32 parameters that an algorithm may change."""
        ...


class Reward(ABC):
    """Scores images. One instance holds its weights; it never sees a policy.

    Class attributes:
        name: registry name. differentiable: scores carry gradients to pixels.
        needs_prompt: False when the prompt is ignored.
        feature_dim: D of ``features``, or None where the reward has no encoder of its own.
        needs_base_samples: ``calibrate`` must be called with images of the base model first.
    """

    name: ClassVar[str]
    differentiable: ClassVar[bool] = False
    needs_prompt: ClassVar[bool] = True
    needs_base_samples: ClassVar[bool] = False
    feature_dim: int | None = None

    @abstractmethod
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] and B prompts to scores ``[B]`` float32; higher is better."""

    def features(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to L2-normalised features ``[B, D]`` of the frozen encoder."""
        raise NotImplementedError(f"reward {self.name!r} has no encoder")

    def score_pictures(
        self, pictures: Sequence[Image], prompts: Sequence[str], side: int, device: str | torch.device = "cpu"
    ) -> Tensor:
        """Scores ``[B]`` of RGB pictures of any size: brought to ``side`` pixels with white around what is not square.

        Rewards that have an official transform of their own use that instead.
        """
        return self(torch.stack([square(picture, side) for picture in pictures]).to(device), prompts)

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """See base samples before anything else, for rewards with ``needs_base_samples``; returns what is recorded."""
        return {}

    @classmethod
    def load(cls, suite: Suite) -> Reward:
        """Build the reward for a suite; override where weights must be read."""
        return cls()

    def weights_hash(self) -> str | None:
        """SHA-256 of the weights file, for the record; None where there are no weights."""
        return None


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

    def policy_optimizer(self, lr: float, weight_decay: float, max_grad_norm: float) -> Optimizer:
        """The optimizer of the policy's trainable parameters."""
        return Optimizer(
            self.policy.trainable(), lr=lr, weight_decay=weight_decay, max_grad_norm=max_grad_norm,
            world=self.policy.world, scaled=self.policy.dtype == torch.float16,
        )  # fmt: skip


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


@dataclass(frozen=True)
class SuiteDefaults:
    """How a suite samples, adapts and evaluates unless the user says otherwise.

    Attributes:
        num_steps, guidance_scale, eta: the stochastic sampler of training *and* evaluation.
        lora_rank, lora_alpha: peft LoRA on to_q, to_k, to_v and to_out.0 of every attention.
        budget: reward queries of a default run.
        eval_points: evaluations of a run, the start and the end included.
        eval_images: images per prompt split and evaluation.
        precision: of the base model's passes on a GPU; a CPU takes float32.
    """

    num_steps: int
    guidance_scale: float
    eta: float
    lora_rank: int
    lora_alpha: int
    budget: int
    eval_points: int
    eval_images: int
    precision: str = "float32"


class Suite(ABC):
    """A base policy, prompts, and the rewards that make sense there.

    ``prompts`` maps a split to its prompts: "train" is what algorithms draw from unless told otherwise, every
    "heldout..." is evaluated and never trained on, others (such as "tuning") are for searching settings.
    ``gold`` is the reward that stands for the truth, evaluated in every run; ``image_size`` the pixels of a side.
    ``all_rewards`` says that a run evaluates every reward of the suite, not only its proxy and golds.

    Args:
        weights: a folder to read weights from instead of the usual places. model: for suites that take one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    gold: ClassVar[str]
    image_size: int
    all_rewards: ClassVar[bool] = False
    defaults: ClassVar[SuiteDefaults]

    def __init__(self, weights: Path | None = None, model: str | None = None) -> None:
        self.model = model

    @classmethod
    def family(cls) -> str:
        """The name under which its rewards are registered: its own, or that of several suites with the same ones."""
        return cls.name

    def repos(self) -> list[Repo]:
        """The Hub repositories that its base model and ``clip_features`` are read from."""
        return []

    def architecture(self) -> Architecture | None:
        """The configs of its U-Net and VAE, to say what a run costs; None where nobody needs to know."""
        return None

    @classmethod
    def takes_model(cls) -> bool:
        """Whether the base model is the user's choice."""
        return False

    @property
    @abstractmethod
    def prompts(self) -> dict[str, tuple[str, ...]]:
        """Prompts by split; the first split is "train"."""

    @abstractmethod
    def missing(self) -> str | None:
        """None when the suite can run here, else one line: what is missing and how to get it."""

    @abstractmethod
    def pipeline(self) -> Any:
        """A fresh ``StableDiffusionPipeline`` in float32 on the CPU."""

    @abstractmethod
    def clip_features(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` in [0, 1] to L2-normalised embeddings ``[B, D]`` of the suite's CLIP.

        Used for diversity, and by critics whose proxy has no encoder. Differentiable.
        """

    @property
    @abstractmethod
    def clip_dim(self) -> int:
        """D of ``clip_features``."""

    @abstractmethod
    def weights_hashes(self) -> dict[str, str]:
        """SHA-256 of each base weights file, for the record."""
