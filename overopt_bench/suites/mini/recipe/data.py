"""Emoji in four drawing styles, from published npm packages, as 64 x 64 RGB on white.

Licences: Noto Emoji (Apache-2.0), Twemoji graphics (CC-BY 4.0), Fluent Emoji (MIT); see NOTICE.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

PACKAGES = {
    "shaded": "emoji-datasource-google@16.0.0",
    "plain": "emoji-datasource-twitter@16.0.0",
    "3d": "@lobehub/fluent-emoji-3d@1.1.0",
    "flat": "@iconify-json/fluent-emoji-flat@1.2.6",
}
STYLES = tuple(PACKAGES)
ANIMALS = ("animal-mammal", "animal-bird", "animal-marine", "animal-bug", "animal-reptile", "animal-amphibian")
OBJECTS = ("food-fruit", "food-vegetable", "plant-flower", "transport-air", "musical-instrument")
SOURCE_SIZE = 64


@dataclass(frozen=True)
class EmojiSet:
    """All drawings: images ``[N, 3, 64, 64]`` uint8, name and style index ``[N]``, the names and their kind."""

    images: Tensor
    name: Tensor
    style: Tensor
    names: tuple[str, ...]
    is_animal: tuple[bool, ...]

    def caption(self, k: int, styled: bool) -> str:
        """The caption of drawing k: its name, or its style and name."""
        name = self.names[int(self.name[k])]
        return f"{STYLES[int(self.style[k])]} {name}" if styled else name


def fetch(folder: Path) -> dict[str, Path]:
    """``npm pack`` each package into ``folder`` unless it is there; style to archive."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for style, package in PACKAGES.items():
        stem = re.sub(r"[@/]", "-", package.rsplit("@", 1)[0]).strip("-")
        archive = folder / f"{stem}-{package.rsplit('@', 1)[1]}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archives[style] = archive
    return archives


def _on_white(image: Image.Image) -> np.ndarray:
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, "white")
    canvas.alpha_composite(rgba)
    return np.asarray(canvas.convert("RGB").resize((SOURCE_SIZE, SOURCE_SIZE), Image.Resampling.LANCZOS))


def _content(archive: tarfile.TarFile, member: str | tarfile.TarInfo) -> bytes:
    """Read a file of an archive."""
    stream = archive.extractfile(member)
    assert stream is not None, f"{member} is no file"
    return stream.read()


def _readers(archives: dict[str, Path]) -> tuple[list[dict[str, Any]], dict[str, Callable[[str], Image.Image | None]]]:
    """The emoji list, and per style a function from a code point string to its picture."""
    import resvg_py

    def raster(style: str, path: str) -> Callable[[str], Image.Image | None]:
        archive = tarfile.open(archives[style])
        members = {m.name: m for m in archive.getmembers()}

        def read(code: str) -> Image.Image | None:
            for candidate in (code, code.replace("-fe0f", "")):
                if (member := members.get(path.format(candidate))) is not None:
                    return Image.open(io.BytesIO(_content(archive, member)))
            return None

        return read

    with tarfile.open(archives["shaded"]) as archive:
        listing = json.loads(_content(archive, "package/emoji.json"))
    with tarfile.open(archives["flat"]) as archive:
        icons = json.loads(_content(archive, "package/icons.json"))["icons"]
        chars = json.loads(_content(archive, "package/chars.json"))

    def flat(code: str) -> Image.Image | None:
        icon = chars.get(code) or chars.get(code.replace("-fe0f", ""))
        if icon not in icons:
            return None
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{icons[icon]["body"]}</svg>'
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=128, height=128))))

    return listing, {
        "shaded": raster("shaded", "package/img/google/64/{}.png"),
        "plain": raster("plain", "package/img/twitter/64/{}.png"),
        "3d": raster("3d", "package/assets/{}.webp"),
        "flat": flat,
    }


def load_emoji(folder: Path, *, names: int | None = None) -> EmojiSet:
    """Read every name that at least three styles draw, in the packages' order.

    Args:
        folder: where the archives are kept.
        names: only the first so many names (the miniature recipe).
    """
    listing, readers = _readers(fetch(folder))
    images, name_ids, style_ids, animal = [], [], [], []
    kept: list[str] = []
    for entry in sorted(listing, key=lambda e: int(e["sort_order"])):
        if entry["subcategory"] not in ANIMALS + OBJECTS or (names is not None and len(kept) == names):
            continue
        drawings = {s: readers[s](entry["unified"].lower()) for s in STYLES}
        found = {s: d for s, d in drawings.items() if d is not None}
        if len(found) < 3:
            continue
        for style, drawing in found.items():
            images.append(_on_white(drawing))
            name_ids.append(len(kept))
            style_ids.append(STYLES.index(style))
        kept.append(re.sub(r"[^a-z ]", "", entry["name"].lower().replace("-", " ")))
        animal.append(entry["subcategory"] in ANIMALS)
    stack = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()
    return EmojiSet(stack, torch.tensor(name_ids), torch.tensor(style_ids), tuple(kept), tuple(animal))


def augment(images: Tensor, generator: Generator, strength: float = 1.0) -> Tensor:
    """Flip, scale by up to 12 %, shift and rotate a little, then shrink to 32 x 32.

    Args:
        images: ``[B, 3, 64, 64]`` in [0, 1] on white.
        generator: of the changes.
        strength: 0 only shrinks.

    Returns:
        ``[B, 3, 32, 32]`` in [0, 1].
    """
    if strength > 0:

        def uniform(limit: float) -> Tensor:
            return (torch.rand(len(images), generator=generator) * 2 - 1) * limit * strength

        scale, angle = 1 + uniform(0.12), uniform(0.12)
        flip = (torch.rand(len(images), generator=generator) < 0.5).float() * 2 - 1
        cos, sin = angle.cos() * scale, angle.sin() * scale
        theta = torch.stack(
            [torch.stack([cos * flip, -sin, uniform(0.08)], 1), torch.stack([sin * flip, cos, uniform(0.08)], 1)], 1
        )
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
        images = 1 - F.grid_sample(1 - images, grid, align_corners=False)  # outside is white
    return F.avg_pool2d(images, 2)
