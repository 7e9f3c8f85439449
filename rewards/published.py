"""What the published image rewards share: two ways into the encoder, micro-batches, and one warning for long prompts."""

from __future__ import annotations

import sys
import textwrap
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from overopt_bench.encoders.clip import MICRO_BATCH, encoder_pixels
from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.preprocessing import clip_pixels, differentiable_pixels
from overopt_bench.lazy import torch
from overopt_bench.types import Reward
from overopt_bench.weights import Repo

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn


class PublishedReward(Reward):
    """A frozen float32 network that scores normalised pixels.

    Images without a gradient take the official path, through 8-bit pictures, as in DDPO's and TDPO's code; images
    with one take ``differentiable_pixels``. The difference is itself a channel for overoptimization, which is why
    evaluation always takes the official path. ``side`` is the encoder's input size, ``repos`` are what it is read from.
    """

    differentiable = True
    repos: ClassVar[tuple[Repo, ...]] = ()
    side: int = 224

    def __init__(self, model: nn.Module, digest: str | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self._digest = digest
        self._warned = False

    @abstractmethod
    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score normalised pixels ``[B, 3, side, side]``: ``[B]``."""

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Compute L2-normalised features ``[B, D]`` of normalised pixels ``[B, 3, side, side]``."""
        raise NotImplementedError(f"reward {self.name!r} has no encoder")

    def official_pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Apply the official transform to RGB pictures of any size: ``[B, 3, side, side]``."""
        return clip_pixels(pictures, self.side)

    def transform(self) -> Hashable:
        """Name what ``official_pixels`` does: rewards with equal names share the pixels of a batch."""
        return (clip_pixels, self.side)

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        """Apply the same to images ``[B, 3, H, W]`` in [0, 1], with gradients: ``[B, 3, side, side]``."""
        return differentiable_pixels(images, self.side)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        follow(self.model, images)
        scores: list[Tensor] = []
        for pixels in self._pixels(images):
            done = sum(map(len, scores))
            scores.append(self.score_pixels(pixels, prompts[done : done + len(pixels)]))
        return torch.cat(scores)

    def features(self, images: Tensor) -> Tensor:
        follow(self.model, images)
        return torch.cat([self.encode_pixels(pixels) for pixels in self._pixels(images)])

    def score_pictures(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], side: int, device: str | torch.device = "cpu"
    ) -> Tensor:
        parts = []
        with torch.no_grad():
            for k in range(0, len(pictures), MICRO_BATCH):
                pixels = self.official_pixels(pictures[k : k + MICRO_BATCH]).to(device)
                follow(self.model, pixels)
                parts.append(self.score_pixels(pixels, prompts[k : k + MICRO_BATCH]))
        return torch.cat(parts)

    def _pixels(self, images: Tensor) -> Iterator[Tensor]:
        return encoder_pixels(images, self.transform(), self.official_pixels, self.differentiable_pixels)

    def weights_hash(self) -> str | None:
        return self._digest

    def warn_cut(self, prompts: Sequence[str], cut: Sequence[bool], limit: int) -> None:
        """Warn once, of the first prompt that the official tokenizer cuts; the rest are cut in silence."""
        long = [p for p, is_cut in zip(prompts, cut, strict=True) if is_cut]
        if long and not self._warned:
            self._warned = True
            shown = textwrap.shorten(long[0], 60, placeholder=" ...")
            print(
                f"warning: {self.name} reads {limit} tokens of a prompt and cuts the rest, as its official code does: {shown!r}"
                " and any other that long", file=sys.stderr, flush=True,
            )  # fmt: skip
