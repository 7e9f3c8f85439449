"""What scores images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from overopt_bench.pictures import square

if TYPE_CHECKING:
    from PIL.Image import Image

    from overopt_bench.types.suite import Suite


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
