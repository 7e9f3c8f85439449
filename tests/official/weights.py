"""Random weights, pictures and prompts that two environments can rebuild from nothing: NumPy seeds and integer formulas.

The dump scripts fill the official models with them and write down what comes out; the tests fill ours with the same and
compare. Nothing here depends on a model's own initialiser, which may change between versions of torch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

PROMPTS: dict[str, str] = {
    "short": "a cat",
    "long": (
        "a highly detailed oil painting of an old lighthouse keeper standing on the rocky shore at dusk, holding a "
        "brass lantern in his left hand while a storm rolls in from the sea, gulls circling above the tower, waves "
        "breaking over the black stones, a small wooden boat tied to the pier, warm light in the windows of the "
        "cottage behind him, thick impasto brush strokes, muted blues and ochres, dramatic clouds, in the style of "
        "the nineteenth century romantic painters, award winning, museum quality"
    ),
    "empty": "",
    "unicode": "Café à la crème brûlée, naïve façade, Ångström ½ 東京の夜 🌸🐈 &amp; &lt;b&gt;  l'été",
    "upper": "A RED BUS ON THE LEFT, A BLUE CAR ON THE RIGHT",
}
"""Prompts by name: short; over 35 BERT and over 77 CLIP tokens; empty; accents, emoji and HTML entities; capitals."""

GAINS = {".query.": 2.0, ".key.": 2.0, "crossattention.output.": 0.3}
"""Factors for ImageReward's text encoder: with flat attention and a loud picture, twelve layers forget the prompt."""


def _scaled(key: str, shape: Sequence[int]) -> tuple[float, float]:
    """Mean and deviation of the values under ``key``."""
    name = key.rsplit(".", 1)[-1]
    if name in ("class_embedding", "cls_token", "pos_embed") or ("embedding" in key and len(shape) > 1):
        return 0.0, 0.5
    if len(shape) > 1:
        gain = next((gain for part, gain in GAINS.items() if part in key), 1.0)
        return 0.0, gain / math.sqrt(math.prod(shape[1:]))
    return (1.0, 0.1) if name == "weight" else (0.0, 0.05)


def fill(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict with ``shapes``, in which every tensor depends on its key, its shape and ``seed`` only.

    Matrices and convolutions are N(0, 1/fan_in) with fan_in the product of all but the first size, norm weights (one
    size, key ending in ``weight``) 1 + 0.1 N, other vectors 0.05 N, embeddings and class tokens 0.5 N, scalars ln(100);
    matrices named in ``GAINS`` are multiplied by their factor.
    All are float32, except keys ending in ``position_ids``, which count from 0 in int64 as they do in real files.
    """
    state = {}
    for key, shape in shapes.items():
        if key.endswith("position_ids"):
            state[key] = torch.arange(math.prod(shape)).reshape(tuple(shape))
        elif not len(shape):
            state[key] = torch.tensor(math.log(100), dtype=torch.float32)
        else:
            mean, deviation = _scaled(key, shape)
            values = np.random.default_rng([crc32(key.encode()), seed]).standard_normal(tuple(shape), dtype=np.float32)
            values *= np.float32(deviation)
            values += np.float32(mean)
            state[key] = torch.from_numpy(values)
    return state


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """The sha256 of keys (sorted), dtypes, shapes and values; compare it before comparing any score."""
    total = hashlib.sha256()
    for key in sorted(state):
        values = np.ascontiguousarray(state[key].detach().cpu().numpy())
        total.update(f"{key} {values.dtype.str} {list(values.shape)}\n".encode())
        total.update(values.data if values.size and values.ndim else values.tobytes())
    return total.hexdigest()


def _smooth(width: int, height: int) -> npt.NDArray[np.int64]:
    """Three slow gradients, [height, width, 3] in int64, without rounding that a platform could change."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    w, h = width - 1, height - 1
    bump = 255 - 255 * ((2 * x - w) ** 2 * h * h + (2 * y - h) ** 2 * w * w) // (2 * w * w * h * h)
    return np.stack([255 * x // w, bump, 255 * x * y // (w * h)], axis=-1)


def pictures() -> dict[str, Image.Image]:
    """Deterministic RGB pictures by name; sizes are width x height.

    ``noise`` and ``smooth`` 512x512; ``wide`` 451x300, ``tall`` 160x200 (is enlarged) and ``odd`` 227x224 (centre crops
    differ by a pixel between libraries), all three with blocks and noise; ``ramp`` 224x224, the only one that no
    transform resizes; ``thirds`` 448x224, left third red, right third blue, white between.
    """

    def noisy(width: int, height: int, seed: int) -> npt.NDArray[np.int64]:
        rng = np.random.default_rng(seed)
        blocks = rng.integers(0, 200, (height // 23 + 1, width // 31 + 1, 3)).repeat(23, axis=0).repeat(31, axis=1)
        noise = rng.integers(-30, 31, (height, width, 3))
        values = _smooth(width, height) // 4 + blocks[:height, :width] + noise
        return values.clip(0, 255).astype(np.int64)

    y, x = np.mgrid[0:224, 0:224]
    thirds = np.full((224, 448, 3), 255)
    thirds[:, : 448 // 3] = (255, 0, 0)
    thirds[:, 448 - 448 // 3 :] = (0, 0, 255)
    arrays = {
        "noise": np.random.default_rng(1).integers(0, 256, (512, 512, 3)),
        "smooth": _smooth(512, 512),
        "wide": noisy(451, 300, 2),
        "tall": noisy(160, 200, 3),
        "odd": noisy(227, 224, 4),
        "ramp": np.stack([x, y, 223 - x], axis=-1),
        "thirds": thirds,
    }
    return {name: Image.fromarray(array.astype(np.uint8)) for name, array in arrays.items()}


def picture_digest() -> str:
    """The sha256 of all pictures' names, sizes and bytes."""
    total = hashlib.sha256()
    for name, picture in pictures().items():
        total.update(f"{name} {picture.size}\n".encode())
        total.update(picture.tobytes())
    return total.hexdigest()
