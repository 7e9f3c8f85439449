"""Suites: a base model, its prompts, and where its rewards are loaded from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from overopt_bench.options import SuiteDefaults
from overopt_bench.types.resources import Resources
from overopt_bench.types.schedule import Schedule
from overopt_bench.weights import Repo, Weights

if TYPE_CHECKING:
    from torch import Tensor


class Architecture(NamedTuple):
    """Configs as ``unet/config.json`` and ``vae/config.json`` have them, less diffusers' defaults."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_parameters: int


class Suite(ABC):
    """A base policy, prompts, and the rewards that make sense there.

    ``prompts`` maps a split to its prompts: "train" is what algorithms draw from unless told otherwise, every
    "heldout..." is evaluated and never trained on, others (such as "tuning") are for searching settings.
    ``gold`` is the reward that stands for the truth, evaluated in every run; ``image_size`` the pixels of a side.
    ``all_rewards`` says that a run evaluates every reward of the suite, not only its proxy and golds; ``knows_truth``
    that ``gold`` is no estimate but the true reward, which is known there, and is shown as that.
    ``small`` says that its networks are so small that nothing need be saved: activations are kept, whole rounds are
    timed, a CPU is enough. ``default_rank`` is above 0 for suites that may be taken where none is asked for: of those
    that can run here, the one of the highest rank.

    Args:
        weights: a folder to read weights from instead of the usual places.
        model: the base model, for suites that take one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    gold: ClassVar[str]
    small: ClassVar[bool] = False
    default_rank: ClassVar[int] = 0
    all_rewards: ClassVar[bool] = False
    knows_truth: ClassVar[bool] = False
    defaults: ClassVar[SuiteDefaults]

    @property
    @abstractmethod
    def image_size(self) -> int:
        """Pixels of a side of the images that the pipeline draws; a class attribute where it is known beforehand."""

    def __init__(self, weights: Path | None = None, model: str | None = None) -> None:
        self.model = model
        self.resources = Resources(self.family(), Weights(weights))

    @classmethod
    def family(cls) -> str:
        """Give the name under which its rewards are registered: its own, or that of several suites with the same ones."""
        return cls.name

    @classmethod
    def settings(cls, algorithm: str) -> Mapping[str, Any]:
        """Return the parameters of an algorithm that this suite sets otherwise than its paper, by name; none by default.

        A suite that keeps them in a YAML file returns ``read_settings(path).get(algorithm, {})`` (``suites.loading``).
        """
        return {}

    def repos(self) -> list[Repo]:
        """List the Hub repositories that its base model and ``clip_features`` are read from."""
        return []

    def architecture(self) -> Architecture | None:
        """Give the configs of its U-Net and VAE, to say what a run costs; None where nobody needs to know."""
        return None

    @classmethod
    def takes_model(cls) -> bool:
        """Say whether the base model is the user's choice."""
        return False

    def pipeline_folder(self) -> Path | None:
        """Find the folder of the base model's pipeline; None where it is in no folder.

        Raises:
            UserError: where it is missing or cannot be trained.
        """
        return None

    @property
    @abstractmethod
    def prompts(self) -> dict[str, tuple[str, ...]]:
        """Prompts by split; the first split is "train"."""

    @abstractmethod
    def missing(self) -> str | None:
        """Say in one line what is missing and how to get it; None when the suite can run here."""

    @abstractmethod
    def pipeline(self) -> Any:
        """Load a fresh ``StableDiffusionPipeline`` in float32 on the CPU."""

    def schedule(self, num_steps: int, eta: float, device: str) -> Schedule | None:
        """Give the mathematics of its sampler; None, as here, is DDIM on the betas of the pipeline's scheduler.

        Args:
            num_steps: T.
            eta: stochasticity, in (0, 1].
            device: where the schedule's timesteps must be.
        """
        return None

    @abstractmethod
    def clip_features(self, images: Tensor) -> Tensor:
        """Embed images ``[B, 3, H, W]`` in [0, 1] as L2-normalised vectors ``[B, D]`` of the suite's CLIP.

        Used for diversity, and by critics whose proxy has no encoder. Differentiable.
        """

    @property
    @abstractmethod
    def clip_dim(self) -> int:
        """D of ``clip_features``."""

    @abstractmethod
    def weights_hashes(self) -> dict[str, str]:
        """Give the SHA-256 of each base weights file, for the record."""
