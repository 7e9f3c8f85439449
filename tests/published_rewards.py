"""What the tests of the published rewards share: small random checkpoints in their real formats, and how to ask them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official.weights import PROMPTS, fill, pictures
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from overopt_bench.encoders.preprocessing import MEAN, STD
from overopt_bench.errors import UserError
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.types import Reward
from overopt_bench.weights import read_state

CLIP, PICK = "clip-vit-large-patch14", "PickScore_v1"
NAMES = ("aesthetic", "clipscore", "pickscore", "imagereward", "hpsv2", "hpsv2_1")
FILES = {
    "aesthetic": f"{CLIP}/model.safetensors", "clipscore": f"{CLIP}/model.safetensors", "pickscore": f"{PICK}/model.safetensors",
    "imagereward": "ImageReward/ImageReward.pt", "hpsv2": "HPSv2/HPS_v2_compressed.pt", "hpsv2_1": "HPSv2/HPS_v2.1_compressed.pt",
}  # fmt: skip
LIMITS = {"clipscore": 77, "pickscore": 77, "imagereward": 35, "hpsv2": 77, "hpsv2_1": 77}
PICTURES, TEXTS = pictures(), list(PROMPTS.values())
SIZES = [(512, 512), (451, 300), (160, 200), (227, 224), (224, 224)]  # width x height
BLACK = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])


def filled(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    return fill({key: tuple(value.shape) for key, value in state.items()}, seed)


def load(name: str, folder: Path) -> Any:
    """A reward with a suite, and so a CLIP, of its own."""
    return get_reward(name, get_suite("sd14", weights=folder))


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images ``[n, 3, height, width]`` with detail, away from 0 and 1, where a clamp has no gradient."""
    return 0.2 + 0.6 * torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@torch.no_grad()
def ask(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    return reward(images, prompts)


def transformers_clip(folder: Path, act: str | None = None) -> Any:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_pretrained(folder)
    if act is not None:
        config.text_config.hidden_act = config.vision_config.hidden_act = act
    return CLIPModel.from_pretrained(folder, config=config).double().eval()


def hub_pixels(images: Sequence[Image.Image] | None = None) -> Tensor:
    from transformers import CLIPImageProcessorPil

    pixels: Tensor = CLIPImageProcessorPil()(list(images or PICTURES.values()), return_tensors="pt").pixel_values
    return pixels.double()


def table_of(reward: Reward) -> Tensor:
    """Scores ``[pictures, prompts]`` through the official transform."""
    pairs = [image for image in PICTURES.values() for _ in TEXTS]
    return reward.score_pictures(pairs, TEXTS * len(PICTURES), 512).reshape(-1, len(TEXTS)).double()


def spoiled(weights: Path, folder: Path, file: str) -> Path:
    """A copy of the folder that holds ``file``; the path of the file in it, to be spoiled."""
    directory = file.split("/")[0]
    for name in {directory, CLIP}:
        shutil.copytree(weights / name, folder / name)
    return folder / file


def complaint(name: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(name, folder)
    message = str(caught.value)
    assert "\n" not in message
    return message


def put(path: Path, state: dict[str, Any]) -> None:
    """Write a state dict in the format of ``path``, HPSv2's one level down."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if path.parent.name == "HPSv2" else state, path)


def get(path: Path) -> dict[str, Tensor]:
    state = read_state(path)
    return dict(state.get("state_dict", state))
