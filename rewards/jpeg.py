"""JPEG size as a reward, exactly as in DDPO (Black et al. 2024): kB of a quality-95 JPEG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from overopt_bench.encoders.preprocessing import to_pil
from overopt_bench.encoders.shared import once_a_batch
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.types import Reward

if TYPE_CHECKING:
    from torch import Tensor


def jpeg_kilobytes(images: Tensor) -> Tensor:
    """Compute the size in kB (1000 bytes) of each image ``[B, 3, H, W]`` in [0, 1] as JPEG: ``[B]`` float32.

    Quality 95 and Pillow's other defaults, that is 4:2:0 chroma and no Huffman optimisation.

    Raises:
        FloatingPointError: for NaN.
    """
    return once_a_batch(images, jpeg_kilobytes, lambda: _kilobytes(images))


def _kilobytes(images: Tensor) -> Tensor:
    sizes = []
    for picture in to_pil(images):
        buffer = io.BytesIO()
        picture.save(buffer, format="JPEG", quality=95)
        sizes.append(buffer.tell() / 1000)
    return torch.tensor(sizes, dtype=torch.float32, device=images.device)


@register_reward
class JpegIncompressibility(Reward):
    """Size of the JPEG in kB: rewards detail, then texture, then noise."""

    name = "jpeg_incompressibility"
    needs_prompt = False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return jpeg_kilobytes(images)


@register_reward
class JpegCompressibility(Reward):
    """Minus the size of the JPEG in kB: rewards smoothness, then emptiness."""

    name = "jpeg_compressibility"
    needs_prompt = False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -jpeg_kilobytes(images)
