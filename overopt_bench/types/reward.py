"""What scores images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo
from typing_extensions import Self

from overopt_bench.lazy import torch
from overopt_bench.types.resources import Resources

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, nn


class Reward(ABC):
    """A judge of images. One instance holds its weights; it never sees a policy.

    Attributes:
        name: in the registry.
        differentiable: scores carry gradients to pixels.
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
        """Score images ``[B, 3, H, W]`` in [0, 1] of B prompts: ``[B]`` float32; higher is better."""

    def features(self, images: Tensor) -> Tensor:
        """Encode images ``[B, 3, H, W]`` in [0, 1] as L2-normalised features ``[B, D]`` of the frozen encoder."""
        raise NotImplementedError(f"reward {self.name!r} has no encoder")

    def score_pictures(
        self, pictures: Sequence[Image], prompts: Sequence[str], side: int, device: str | torch.device = "cpu"
    ) -> Tensor:
        """Score RGB pictures of any size, brought to ``side`` pixels with white around what is not square: ``[B]``.

        Rewards that have an official transform of their own use that instead.
        """
        from overopt_bench.pictures import square

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
    def check_prompts(cls, prompts: Sequence[str], resources: Resources) -> None:
        """Refuse prompts that it cannot judge; called before anything is loaded or written. It judges all by default.

        Args:
            prompts: all prompts that it will be asked about.
            resources: the suite's, where its files are found.

        Raises:
            UserError: which says why, and what is nearest.
        """
        return None

    @classmethod
    def load(cls, resources: Resources) -> Self:
        """Build the reward; override where weights must be read.

        Args:
            resources: finds weights; what it gives through ``once`` is shared with the suite's other rewards.
        """
        return cls()

    def networks(self) -> list[nn.Module]:
        """List the networks that it holds, to say how much memory they take: the modules among its attributes."""
        return [value for value in vars(self).values() if isinstance(value, torch.nn.Module)]

    def weights_hash(self) -> str | None:
        """Give the SHA-256 of the weights file, for the record; None where there are no weights."""
        return None


class RewardParams(BaseModel):
    """The parameters of a derived reward; a subclass declares each with its default, range and description."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def named_fields(cls) -> dict[str, FieldInfo]:
        """Give the fields by the name that a user writes: the alias of one whose name is a word of Python."""
        return {field.alias or name: field for name, field in cls.model_fields.items()}


class DerivedReward(Reward):
    """A reward made of others of its suite, asked for as ``kind:a+b`` or, with parameters, ``kind@name=value:a+b``.

    ``register_derived_reward`` makes the kind known. For each name that is asked for, the registry makes a subclass with
    ``name``, ``members`` and ``params``, which is ``differentiable`` where every member is and reads the prompt where one
    does.

    Attributes:
        kind: the word before the colon.
        Params: what may stand between the kind and the colon.
        members: names of two or more different plain rewards.
        params: the values of this name; those at their defaults are left out of ``name``.
    """

    kind: ClassVar[str]
    Params: ClassVar[type[RewardParams]] = RewardParams
    members: ClassVar[tuple[str, ...]]
    params: ClassVar[RewardParams]
