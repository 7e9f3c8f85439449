"""Picture files of any size and mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from overopt_bench.errors import UserError


def read_picture(path: Path) -> Image.Image:
    """A picture of any mode as RGB: EXIF rotation applied, transparency white, 16 bits a channel scaled to 8.

    Raises:
        UserError: where the file is missing or no picture that Pillow reads.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image, np.float32) / 257).round().astype(np.uint8))
            if image.has_transparency_data:
                canvas = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(canvas, image.convert("RGBA"))
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error})") from None


def square(picture: Image.Image, side: int) -> Tensor:
    """``[3, side, side]`` in [0, 1]: what is not square is padded with white, then resized (bicubic, antialiased)."""
    padded = ImageOps.pad(picture, (side, side), Image.Resampling.BICUBIC, color="white")
    return torch.from_numpy(np.array(padded)).permute(2, 0, 1).float() / 255
