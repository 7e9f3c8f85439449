"""Checkpoints and rewards that are made once and only read.

The weights come from ``official.weights.fill``, under which every score depends on picture and prompt; transformers' own
initialisation leaves ImageReward nearly blind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published_rewards import CLIP, FILES, NAMES, PICK, filled, load
from safetensors.torch import load_file, save_file
from torch import Tensor

from overopt_bench.rewards.clip import AESTHETIC_HEAD
from overopt_bench.rewards.heads import RegressionHead
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.weights import load_strictly, read_state


@pytest.fixture(scope="session")
def weights(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny_weights``' rewards under ``fill``: nothing in them is at a default that would hide a mistake."""
    folder = tmp_path_factory.mktemp("filled")
    for name in (CLIP, PICK, "ImageReward", "HPSv2"):
        shutil.copytree(tiny_weights / name, folder / name)
    for name in (CLIP, PICK):
        path = folder / name / "model.safetensors"
        save_file(filled(load_file(path)), path)
    path = folder / FILES["imagereward"]
    torch.save(filled(torch.load(path, weights_only=True)), path)
    for seed, name in enumerate(("hpsv2", "hpsv2_1")):
        path = folder / FILES[name]
        state = filled(torch.load(path, weights_only=True)["state_dict"], seed)
        torch.save({"state_dict": {key: value.half() for key, value in state.items()}}, path)
    return folder


@pytest.fixture(scope="session")
def loaded(weights: Path) -> dict[str, PublishedReward]:
    """All six, to be read only."""
    return {name: load(name, weights) for name in NAMES}


@pytest.fixture(scope="module")
def head() -> RegressionHead:
    model = RegressionHead(768)
    load_strictly(model, read_state(AESTHETIC_HEAD), AESTHETIC_HEAD)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / "aesthetic_head.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}
