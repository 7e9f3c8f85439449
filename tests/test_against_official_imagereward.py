"""ImageReward against its authors' package; ``official/comparing.py`` says how and how near."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from official.comparing import (
    GRADIENT,
    IMAGEREWARD,
    PICTURES,
    SCORE,
    TEXTS,
    arrays,
    gradient_difference,
    index,
    load,
    score_difference,
    scores_of,
)
from official.weights import digest, fill
from torch import Tensor, nn

from overopt_bench.encoders.preprocessing import MEAN, STD, normalise
from overopt_bench.rewards.blip import ImageRewardModel, transformers_names
from overopt_bench.rewards.imagereward import ImageReward


@pytest.fixture(scope="module")
def image_reward_truth() -> dict[str, npt.NDArray[Any]]:
    return arrays("imagereward")


def write_image_reward(folder: Path, variant: str) -> None:
    """``ImageReward.pt`` and ``med_config.json`` of the variant, its digest checked."""
    facts = IMAGEREWARD[variant]
    state = fill(facts["shapes"], facts["seed"])
    assert digest(state) == facts["state_sha256"]
    (folder / "ImageReward").mkdir(parents=True)
    torch.save(state, folder / "ImageReward" / "ImageReward.pt")
    (folder / "ImageReward" / "med_config.json").write_text(json.dumps(facts["med_config"]))


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    folder = tmp_path_factory.mktemp("official")
    write_image_reward(folder, "small")
    reward = load("imagereward", folder)
    assert isinstance(reward, ImageReward)
    return reward


def their_pixels(truth: Mapping[str, npt.NDArray[Any]]) -> Tensor:
    """What ``image-reward`` gave its model, ``[7, 3, 224, 224]``: its ToTensor and Normalize of the stored bytes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(truth["pixels"]).float().div(255) - mean) / std


@pytest.mark.parametrize("variant", ["small", "full"])
def test_image_reward_maps_every_tensor_that_the_score_uses(variant: str) -> None:
    """Names and shapes only, at the true size too: on the meta device, where nothing is allocated."""
    facts = IMAGEREWARD[variant]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in facts["shapes"].items()}
        ours = transformers_names(state)
        model = ImageRewardModel(ours, facts["med_config"])
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert own == {key: tuple(value.shape) for key, value in ours.items()}
    unused = {"blip.text_encoder.embeddings.position_ids"}
    unused |= {f"blip.{name}.{kind}" for name in ("vision_proj", "text_proj") for kind in ("weight", "bias")}
    assert unused < set(state) and len(ours) == len(state) - len(unused)
    assert (len(state), len(ours)) == {"small": (101, 96), "full": (625, 620)}[variant]
    assert {id(value) for value in ours.values()} == {id(state[key]) for key in state.keys() - unused}


def test_image_reward_keeps_every_value(image_reward: ImageReward) -> None:
    """After loading each parameter is the tensor of the file under its official name, to the bit."""
    state = transformers_names(fill(IMAGEREWARD["small"]["shapes"]))
    own = image_reward.model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], value) for key, value in state.items())


def test_image_reward_reads_the_official_tokens(
    image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    words = image_reward.tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=35, return_tensors="np"
    )  # as in score_pixels
    assert np.array_equal(words["input_ids"], image_reward_truth["input_ids"])
    assert np.array_equal(words["attention_mask"], image_reward_truth["attention_mask"])


def test_image_reward_sees_the_official_pixels(
    image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    """Equal to the bit for all seven sizes, the odd one included."""
    assert torch.equal(image_reward.official_pixels(list(PICTURES.values())), their_pixels(image_reward_truth))


def test_image_reward_passes_the_official_tokens_on(
    image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reaches the network is the ids and the mask, 35 wide, not what another call of the tokenizer gives."""
    seen: dict[str, Tensor] = {}

    def spy(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        seen.update(ids=ids, mask=mask)
        return torch.zeros(len(ids))

    monkeypatch.setattr(image_reward.model, "forward", spy)
    image_reward.score_pixels(torch.zeros(len(TEXTS), 3, 224, 224), TEXTS)
    assert np.array_equal(seen["ids"].numpy(), image_reward_truth["input_ids"])
    assert np.array_equal(seen["mask"].numpy(), image_reward_truth["attention_mask"])


@pytest.mark.parametrize("end_to_end", [False, True])
def test_image_reward_scores_as_the_package(
    end_to_end: bool, image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    pixels = None if end_to_end else their_pixels(image_reward_truth)
    theirs = image_reward_truth["small_scores" if end_to_end else "small_scores_from_pixels"]
    ours = scores_of(image_reward, list(PICTURES.values()), TEXTS, pixels)
    assert score_difference(ours, theirs) <= SCORE


def test_image_rewards_two_encoders_are_the_packages(
    image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    """The class token of the image encoder, and of the text encoder: where a difference would come from."""
    pixels = their_pixels(image_reward_truth)
    with torch.no_grad():
        patches = image_reward.model.vision(pixel_values=pixels).last_hidden_state
    theirs = image_reward_truth["small_image_cls"]
    assert score_difference(patches[:, 0, :16], theirs) <= SCORE
    unit = torch.nn.functional.normalize(patches[:, 0], dim=-1)
    torch.testing.assert_close(image_reward.encode_pixels(pixels), unit)
    words, seen = image_reward_truth["small_text_cls"], []
    hook = image_reward.model.text.register_forward_hook(lambda *args: seen.append(args[-1].last_hidden_state[:, 0]))
    scores_of(image_reward, [], TEXTS, pixels)
    hook.remove()
    assert score_difference(torch.stack(seen)[:, :, :16], words) <= SCORE


@pytest.mark.parametrize("pair", IMAGEREWARD["gradients"])
def test_image_rewards_gradients_are_the_packages(
    pair: Sequence[str], image_reward: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    picture, prompt = index(pair)
    theirs, norm = (image_reward_truth[f"small_gradient{kind}_{'_'.join(pair)}"] for kind in ("", "_norm"))
    pixels = their_pixels(image_reward_truth)[picture]
    assert gradient_difference(image_reward, pixels, TEXTS[prompt], theirs, norm) <= GRADIENT


def wrong_vision_eps(model: ImageRewardModel) -> None:
    for module in model.vision.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5  # transformers' default for BLIP; the published model has 1e-6


def wrong_text_eps(model: ImageRewardModel) -> None:
    for module in model.text.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-5


def wrong_token(model: ImageRewardModel) -> None:
    model.head.register_forward_pre_hook(lambda _, args: (args[0].roll(1, 0),))  # another pair's first token


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def quick_gelu(model: ImageRewardModel) -> None:
    for layer in model.vision.encoder.layers:
        layer.mlp.activation_fn = QuickGELU()


def nothing(model: ImageRewardModel) -> None:
    pass


def swapped_norms(model: ImageRewardModel) -> None:
    layer = model.vision.encoder.layers[0]
    layer.layer_norm1, layer.layer_norm2 = layer.layer_norm2, layer.layer_norm1


MISTAKES = (wrong_vision_eps, wrong_text_eps, wrong_token, quick_gelu, swapped_norms)


@pytest.mark.parametrize("mistake", [nothing, *MISTAKES])
def test_the_tolerance_catches_known_mistakes(
    mistake: Callable[[ImageRewardModel], None], tmp_path: Path, image_reward_truth: dict[str, npt.NDArray[Any]]
) -> None:
    """In float64, so that the answer is the same everywhere: without a mistake half the tolerance is kept.

    ``wrong_vision_eps`` alone is near it, 1.1e-5; the others cost four times that or more.
    """
    write_image_reward(tmp_path, "small")
    reward = load("imagereward", tmp_path)
    reward.model.double()
    mistake(reward.model)
    ours = scores_of(reward, [], TEXTS, their_pixels(image_reward_truth).double())
    difference = score_difference(ours, image_reward_truth["small_scores_from_pixels"])
    assert difference <= SCORE / 2 if mistake is nothing else difference > SCORE


@pytest.fixture(scope="module")
def true_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageReward]:
    """The real architecture, 446 million numbers; the file of 1.8 GB goes as soon as it is read."""
    folder = tmp_path_factory.mktemp("full")
    write_image_reward(folder, "full")
    gc.collect()
    reward = load("imagereward", folder)
    (folder / "ImageReward" / "ImageReward.pt").unlink()
    yield reward


@pytest.mark.slow
def test_image_reward_at_its_true_size(true_size: ImageReward, image_reward_truth: dict[str, npt.NDArray[Any]]) -> None:
    """Three pictures x three prompts end to end, and both gradients; the limits are those of the small one."""
    assert sum(p.numel() for p in true_size.model.parameters()) == 446_206_689
    rows, columns = [list(PICTURES).index(n) for n in ("noise", "wide", "odd")], [0, 1, 3]
    images, prompts = [list(PICTURES.values())[i] for i in rows], [TEXTS[j] for j in columns]
    theirs = image_reward_truth["full_scores"][np.ix_(rows, columns)]
    ours = scores_of(true_size, images, prompts)
    spread = float(image_reward_truth["full_scores"].astype(np.float64).std())
    assert float((ours - torch.from_numpy(theirs)).abs().max()) / spread <= SCORE
    pixels = their_pixels(image_reward_truth)
    for pair in IMAGEREWARD["gradients"]:
        picture, prompt = index(pair)
        gradient, norm = (image_reward_truth[f"full_gradient{kind}_{'_'.join(pair)}"] for kind in ("", "_norm"))
        assert gradient_difference(true_size, pixels[picture], TEXTS[prompt], gradient, norm) <= GRADIENT


def test_normalise_is_torchvisions() -> None:
    """To the bit, so that the pixels above say something about the bytes."""
    from torchvision.transforms.functional import normalize

    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalise(images), normalize(images, MEAN, STD))
