"""Picture files of any size and mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from overopt_bench.errors import UserError

BITS_PER_SAMPLE, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
WHITE_IS_ZERO, SIGNED = 0, 2  # values of the latter two


def read_picture(path: Path) -> Image.Image:
    """A picture of any mode as RGB: EXIF rotation applied, transparency white, deeper channels scaled to 8 bits.

    Of a file with several frames it is the first.

    Raises:
        UserError: where the file is missing or no picture that Pillow reads, or it is not known which of its numbers
            are black and white.
    """
    try:
        with Image.open(path) as opened:
            tags = dict(getattr(opened, "tag_v2", {}))
            if SIGNED in tags.get(SAMPLE_FORMAT, ()) and max(tags.get(BITS_PER_SAMPLE, (32,))) < 32:
                raise ValueError(
                    "its numbers are signed and of less than 32 bits; which are black and white is not known"
                )
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16") or image.mode in ("I", "F"):
                image = _eight_bits(image, tags)
            if image.has_transparency_data:
                canvas = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(canvas, image.convert("RGBA"))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error})") from None


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A grey picture of 16 or 32 bits as the same one in 8: integers in [0, 65535], floats in [0, 1].

    Args:
        image: of a mode I;16, I or F.
        tags: of the TIFF that it was read from; empty for other formats.

    Raises:
        ValueError: for NaN, and for numbers of another range.
    """
    pixels = np.asarray(image, np.float64)
    kind, white = ("floats", 1.0) if image.mode == "F" else ("integers", 65535.0)
    low, high = float(pixels.min()), float(pixels.max())  # NaN where any pixel is
    if not (low >= 0 and high <= white):
        raise ValueError(
            f"its grey values are {kind} from {low:g} to {high:g}; allowed are 0 to {white:g}, black to white"
        )
    if image.mode == "I" and tags and 0 < high <= 255:
        raise ValueError(f"its 32-bit integers from {low:g} to {high:g} may be of 8 or of 16 bits; save it in 8 bits")
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds in 8 bits only
        pixels = white - pixels
    return Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))


def square(picture: Image.Image, side: int) -> Tensor:
    """``[3, side, side]`` in [0, 1]: what is not square is padded with white, then resized (bicubic, antialiased)."""
    padded = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color="white")
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1).float() / 255
