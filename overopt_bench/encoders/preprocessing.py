"""From pictures to what the published encoders see: the official transforms, and a differentiable one.

Measured on 512 x 512 against the official PIL path, in units of the normalised input (one grey level is 0.0146):
the differentiable path differs by 0.030 at most and 0.005 rms on a photograph, which is the rounding to uint8.
EXIF rotation and transparency are settled before these functions: they take RGB.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from overopt_bench.encoders.shared import once_a_batch
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # OpenAI's CLIP; BLIP and ImageReward use the same
STD = (0.26862954, 0.26130258, 0.27577711)


def normalise(images: Tensor) -> Tensor:
    """Subtract CLIP's mean from images ``[B, 3, H, W]`` in [0, 1] and divide by its deviation."""
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images - mean) / std


def at_least_float32(images: Tensor) -> Tensor:
    """Give images in float32 or float64; half precision is too coarse to resize in."""
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images


def to_pil(images: Tensor) -> list[Image.Image]:
    """Turn images ``[B, 3, H, W]`` in [0, 1] into 8-bit pictures, rounded as in DDPO's and TDPO's code.

    Raises:
        FloatingPointError: for NaN, which would become black without a word.
    """
    return once_a_batch(images, to_pil, lambda: _pictures(images))


def _pictures(images: Tensor) -> list[Image.Image]:
    from PIL import Image

    if not bool(torch.isfinite(images).all()):
        raise FloatingPointError("an image holds NaN or infinity")
    pixels = (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return [Image.fromarray(array) for array in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Turn RGB pictures of one size into images ``[B, 3, H, W]`` in [0, 1]."""
    import numpy as np

    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 255


def resize_and_crop(picture: Image.Image, side: int, crop: str = "hub") -> Image.Image:
    """Resize the shorter side to ``side`` by PIL's bicubic filter and keep the centre, as OpenAI's code does.

    Args:
        picture: RGB, of any size.
        side: pixels.
        crop: where an odd number of pixels is left over, "hub" starts at their half rounded down, as the Hub's
            processors do; "torchvision" at the half rounded to even, as torchvision's ``CenterCrop``.
    """
    from PIL import Image

    w, h = picture.size
    scale_w, scale_h = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    if (w, h) != (scale_w, scale_h):
        picture = picture.resize((scale_w, scale_h), Image.Resampling.BICUBIC)
    left, top = ((n - side) // 2 if crop == "hub" else round((n - side) / 2) for n in (scale_w, scale_h))
    return picture.crop((left, top, left + side, top + side))


def clip_pixels(pictures: Sequence[Image.Image], side: int, crop: str = "hub") -> Tensor:
    """Make the official input ``[B, 3, side, side]`` of CLIP, PickScore, the aesthetic predictor and ImageReward."""
    with ThreadPoolExecutor() as threads:  # Pillow lets go of the interpreter while it resizes
        return normalise(to_tensor(list(threads.map(lambda p: resize_and_crop(p, side, crop), pictures))))


def letterbox(images: Tensor, side: int, antialias: bool = True) -> Tensor:
    """Apply HPSv2's own transform to images ``[B, 3, H, W]`` in [0, 1]: the *longer* side to ``side``, black around it.

    Bicubic on floats, neither rounded nor clamped, as in its code; differentiable. ``antialias`` is what torchvision
    has done since 0.17 (January 2024); v2's published numbers were most likely made without.
    """
    images = at_least_float32(images)
    h, w = images.shape[-2:]
    scale = side / max(h, w)
    new_h, new_w = round(h * scale), round(w * scale)
    if (new_h, new_w) != (h, w):
        images = torch.nn.functional.interpolate(images, (new_h, new_w), mode="bicubic", antialias=antialias)
    left, top = (side - new_w) // 2, (side - new_h) // 2
    return normalise(torch.nn.functional.pad(images, (left, side - new_w - left, top, side - new_h - top)))


def differentiable_pixels(images: Tensor, side: int) -> Tensor:
    """Turn images ``[B, 3, H, W]`` in [0, 1] into normalised input ``[B, 3, side, side]``, with gradients.

    Antialiased bicubic on floats, clamped, then the centre: the official path but for its rounding to uint8.
    """
    h, w = images.shape[-2:]
    new_h, new_w = (int(side * h / w), side) if w <= h else (side, int(side * w / h))
    images = at_least_float32(images)
    if (new_h, new_w) != (h, w):
        images = torch.nn.functional.interpolate(images, (new_h, new_w), mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (new_h - side) // 2, (new_w - side) // 2
    return normalise(images[..., top : top + side, left : left + side])
