"""Rewards on pictures from disk, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps
from torch import Tensor

from overopt_bench.errors import UserError
from overopt_bench.registry import get_reward, rewards
from overopt_bench.types import Suite

BATCH = 64


def read_picture(path: Path, side: int) -> Tensor:
    """A picture of any size and mode as ``[3, side, side]`` in [0, 1].

    EXIF rotation is applied, transparency becomes white, 16 bits a channel are scaled, and what is not square is
    padded with white before it is resized (bicubic, antialiased).

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
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no picture that can be read ({error})") from None
    image = ImageOps.pad(image, (side, side), Image.Resampling.BICUBIC, color="white")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def score(
    names: Sequence[str], prompt: str, paths: Sequence[Path], suite: Suite, device: str
) -> tuple[pd.DataFrame, list[str]]:
    """Every reward of every picture.

    Returns:
        A row per picture (``image`` and a column per reward), and a line for each file that could not be read.

    Raises:
        UserError: where a reward does not exist, needs a prompt and has none, or cannot judge the prompt.
    """
    loaded = {name: get_reward(name, suite) for name in dict.fromkeys(names)}
    if speechless := [name for name, reward in loaded.items() if reward.needs_prompt and not prompt.strip()]:
        free = [name for name in rewards.names(suite.name) if not rewards.get(name, suite.name).needs_prompt]
        raise UserError(f"--reward {speechless[0]} needs a --prompt; without one there are {', '.join(free) or 'none'}")
    pictures, good, complaints = [], [], []
    for path in paths:
        try:
            pictures.append(read_picture(path, suite.image_size))
            good.append(str(path))
        except UserError as error:
            complaints.append(str(error))
    table: dict[str, list[str] | list[float]] = {"image": good}
    for name, reward in loaded.items():
        values: list[float] = []
        for k in range(0, len(good), BATCH):
            images = torch.stack(pictures[k : k + BATCH]).to(device)
            try:
                values += reward(images, [prompt] * len(images)).tolist()
            except ValueError as error:  # the mini judge knows names, not every word
                raise UserError(f"--reward {name}: {error}") from None
        table[name] = values
    return pd.DataFrame(table), complaints
