"""What the dump scripts write beside their arrays: versions, command, key tables, digests."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weights import PROMPTS, picture_digest, pictures

LIBRARIES = (
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "timm",
    "fairscale",
    "ftfy",
    "regex",
    "pillow",
    "numpy",
)


def sha256(path: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """Key -> shape, in the model's order: what ``weights.fill`` takes."""
    return {key: list(value.shape) for key, value in state.items()}


def subsample(values: torch.Tensor) -> tuple[np.ndarray, np.float64]:
    """Every eighth row and column of [..., h, w], and the l2 norm of all of it in float64."""
    array = values.detach().numpy()
    return np.ascontiguousarray(array[..., ::8, ::8]), np.float64(np.linalg.norm(array.astype(np.float64)))


def describe(package: str, command: str) -> dict[str, Any]:
    """Versions, the command with placeholders for machine paths, and what the axes of the arrays stand for."""
    return {
        "command": command,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in (package, *LIBRARIES)},
        "threads": torch.get_num_threads(),
        "pictures": {name: list(picture.size) for name, picture in pictures().items()},
        "pictures_sha256": picture_digest(),
        "prompts": PROMPTS,
    }


def save(stem: Path, arrays: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """``stem``.npz and ``stem``.json, the latter with one line per key of a model."""
    np.savez_compressed(stem.with_suffix(".npz"), **arrays)
    table = {name: f"{np.asarray(value).dtype} {list(np.shape(value))}" for name, value in arrays.items()}
    text = json.dumps(dict(content) | {"arrays": table}, indent=2, ensure_ascii=False)
    text = re.sub(
        r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]).replace("[ ", "[").replace(" ]", "]"), text
    )
    stem.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def report(name: str, scores: np.ndarray) -> None:
    """Prints a score matrix; fails if two pictures or two prompts are nearly the same to the model."""
    spread = scores.std()
    print(f"{name}: min {scores.min():.4f} max {scores.max():.4f} std {spread:.4f}\n{np.round(scores, 4)}")
    for axis, what in enumerate(("pictures", "prompts")):
        rows = np.moveaxis(scores, axis, 0)
        gaps = np.abs(rows[:, None] - rows[None]).max(axis=2) + np.where(np.eye(len(rows)), np.inf, 0)
        if gaps.min() < 0.05 * spread:
            raise SystemExit(f"{name}: two {what} score alike, {gaps.min():.2e} at most apart: the weights are dead")
        print(f"  two {what} are at least {gaps.min() / spread:.2f} std apart somewhere")
