"""Rewards, and the suites that they belong to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from overopt_bench.pictures import square
from overopt_bench.weights import Repo

if TYPE_CHECKING:
    from PIL.Image import Image


class Reward(ABC):
    """Scores images. One instance holds its weights; it never sees a policy.

    Class attributes:
        name: registry name. differentiable: scores carry gradients to pixels.
        needs_prompt: False when the prompt is ignored.
        feature_dim: D of ``features``, or None where the reward has no encoder of its own.
        needs_base_samples: ``calibrate`` must be called with images of the base model first, or ``load_calibration``.
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
        """See base samples before anything else, for rewards with ``needs_base_samples``.

        Returns:
            What was learned from them; it is recorded and saved, and ``load_calibration`` takes it back.
        """
        return {}

    def load_calibration(self, facts: Mapping[str, float]) -> None:
        """Take what ``calibrate`` returned, here or on another machine, instead of base samples.

        Raises:
            UserError: where something is missing or cannot be.
        """
        raise NotImplementedError(f"reward {self.name!r} cannot take back what it learned from base samples")

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], suite: Suite) -> None:
        """Refuse prompts that it cannot judge; called before anything is loaded or written. It judges all by default.

        Raises:
            UserError: which says why, and what is nearest.
        """
        return None

    @classmethod
    def load(cls, suite: Suite) -> Reward:
        """Build the reward for a suite; override where weights must be read."""
        return cls()

    def weights_hash(self) -> str | None:
        """SHA-256 of the weights file, for the record; None where there are no weights."""
        return None


class Architecture(NamedTuple):
    """Configs as ``unet/config.json`` and ``vae/config.json`` have them, less diffusers' defaults."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_parameters: int


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
    ``all_rewards`` says that a run evaluates every reward of the suite, not only its proxy and golds; ``knows_truth``
    that ``gold`` is no estimate but the true reward of the suite's world, and is shown as that.

    Args:
        weights: a folder to read weights from instead of the usual places. model: for suites that take one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    gold: ClassVar[str]
    image_size: int
    all_rewards: ClassVar[bool] = False
    knows_truth: ClassVar[bool] = False
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
