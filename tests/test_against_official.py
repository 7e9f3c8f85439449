"""ImageReward and HPSv2 against their authors' packages: same random weights, pictures and prompts.

``golden/official_*.npz`` holds what ``image-reward`` 1.5 and ``hpsv2`` 1.2.0 computed (official/README.md). Here the same
weights are rebuilt, written as the files that the Hub has, and read by our loader, whose keys are strict. Scores differ by
max |ours - theirs| / std(theirs) over all pictures x prompts, gradients by ||ours - theirs|| / ||theirs|| over the pixels
that were kept (every eighth). What is left is float32 rounding, in another order of summation; in float64 our small ImageReward
differs from the package's float32 by 4.3e-6, which is the package's own rounding and the same on every machine.

Measured on one CPU, largest of all: ImageReward small 1.6e-6 (35 scores), full 1.9e-6 (35), HPSv2 2.2e-6 (35); gradients
4.9e-7, 1.1e-6 and 0. The cheapest mistake known, a LayerNorm epsilon of 1e-5 in the image encoder, costs 1.1e-5.
"""

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
from official.weights import PROMPTS, digest, fill, picture_digest, pictures
from PIL import Image
from torch import Tensor, nn

from overopt_bench.encoders.preprocessing import MEAN, STD, letterbox, normalise, to_tensor
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.rewards.hpsv2 import HPSv2
from overopt_bench.rewards.imagereward import ImageReward, ImageRewardModel, transformers_names
from overopt_bench.rewards.published import PublishedReward

GOLDEN = Path(__file__).parent / "golden"
SCORE, GRADIENT = 1e-5, 1e-4  # largest differences, relative as said above
IMAGEREWARD: dict[str, Any] = json.loads((GOLDEN / "official_imagereward.json").read_text())
HPS: dict[str, Any] = json.loads((GOLDEN / "official_hpsv2.json").read_text())
PICTURES, TEXTS = pictures(), list(PROMPTS.values())


def arrays(name: str) -> dict[str, npt.NDArray[Any]]:
    with np.load(GOLDEN / f"official_{name}.npz") as archive:
        return {key: archive[key] for key in archive.files}


@pytest.fixture(scope="module")
def image_reward_truth() -> dict[str, npt.NDArray[Any]]:
    return arrays("imagereward")


@pytest.fixture(scope="module")
def hps_truth() -> dict[str, npt.NDArray[Any]]:
    return arrays("hpsv2")


def write_image_reward(folder: Path, variant: str) -> None:
    """``ImageReward.pt`` and ``med_config.json`` of the variant, its digest checked."""
    facts = IMAGEREWARD[variant]
    state = fill(facts["shapes"], facts["seed"])
    assert digest(state) == facts["state_sha256"]
    (folder / "ImageReward").mkdir(parents=True)
    torch.save(state, folder / "ImageReward" / "ImageReward.pt")
    (folder / "ImageReward" / "med_config.json").write_text(json.dumps(facts["med_config"]))


def load(name: str, folder: Path) -> Any:
    return get_reward(name, get_suite("sd14", weights=folder))


@pytest.fixture(scope="module")
def image_reward(tmp_path_factory: pytest.TempPathFactory) -> ImageReward:
    folder = tmp_path_factory.mktemp("official")
    write_image_reward(folder, "small")
    reward = load("imagereward", folder)
    assert isinstance(reward, ImageReward)
    return reward


@pytest.fixture(scope="module")
def hps(tmp_path_factory: pytest.TempPathFactory) -> HPSv2:
    folder = tmp_path_factory.mktemp("official") / "HPSv2"
    state = fill(HPS["shapes"], HPS["seed"])
    half = {key: value.half() for key, value in state.items()}
    assert digest(state) == HPS["state_sha256"] and digest(half) == HPS["half_state_sha256"]
    folder.mkdir()
    torch.save({"state_dict": half}, folder / "HPS_v2_compressed.pt")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": HPS["config"]}))
    reward = load("hpsv2", folder.parent)
    assert isinstance(reward, HPSv2)
    return reward


def score_difference(ours: Tensor, theirs: npt.NDArray[Any]) -> float:
    """max |ours - theirs| / std(theirs) over a table ``[pictures, prompts]``."""
    return float((ours.double() - torch.from_numpy(theirs).double()).abs().max() / theirs.astype(np.float64).std())


@torch.no_grad()
def scores_of(
    reward: PublishedReward, images: Sequence[Image.Image], prompts: Sequence[str], pixels: Tensor | None = None
) -> Tensor:
    """Scores ``[pictures, prompts]``, end to end or, where they are given, of pixels ``[pictures, 3, side, side]``."""
    n = len(prompts)
    if pixels is None:
        pairs = [image for image in images for _ in prompts]
        return reward.score_pictures(pairs, list(prompts) * len(images), 512).reshape(-1, n)
    return torch.stack([reward.score_pixels(pixel.expand(n, -1, -1, -1), prompts) for pixel in pixels])


def gradient_difference(
    reward: PublishedReward, pixels: Tensor, prompt: str, theirs: npt.NDArray[Any], norm: npt.NDArray[Any]
) -> float:
    """Relative l2 of d score / d pixels over every eighth pixel; its whole length is compared to theirs too."""
    leaf = pixels[None].clone().requires_grad_()
    (whole,) = torch.autograd.grad(reward.score_pixels(leaf, [prompt]).sum(), leaf)
    assert float(whole.norm()) == pytest.approx(float(norm), rel=GRADIENT)
    part, truth = whole[0, :, ::8, ::8].double(), torch.from_numpy(theirs).double()
    return float((part - truth).norm() / truth.norm())


def their_pixels(truth: Mapping[str, npt.NDArray[Any]]) -> Tensor:
    """What ``image-reward`` gave its model, ``[7, 3, 224, 224]``: its ToTensor and Normalize of the stored bytes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(truth["pixels"]).float().div(255) - mean) / std


def index(pair: Sequence[str]) -> tuple[int, int]:
    picture, prompt = pair
    return list(PICTURES).index(picture), list(PROMPTS).index(prompt)


# --- that both sides speak of the same things


def test_pictures_and_prompts_are_those_of_the_official_runs() -> None:
    for facts in (IMAGEREWARD, HPS):
        assert facts["pictures_sha256"] == picture_digest()
        assert facts["prompts"] == PROMPTS and list(facts["pictures"]) == list(PICTURES)


def test_scores_depend_on_both_picture_and_prompt(
    image_reward_truth: dict[str, npt.NDArray[Any]], hps_truth: dict[str, npt.NDArray[Any]]
) -> None:
    """Else a deaf or blind model would pass: the truth varies along both axes, a hundred tolerances at least."""
    for table in (image_reward_truth["small_scores"], image_reward_truth["full_scores"], hps_truth["scores"]):
        assert table.std(axis=0).min() > 100 * SCORE * table.std()
        assert table.std(axis=1).min() > 100 * SCORE * table.std()


# --- ImageReward


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


# --- HPSv2


def test_hps_has_every_tensor_of_the_file(hps: HPSv2) -> None:
    """62 of 62, in half precision on disk and float32 in memory, to the bit."""
    state = {key: value.half().float() for key, value in fill(HPS["shapes"]).items()}
    own = hps.model.state_dict()
    assert own.keys() == state.keys() and len(own) == HPS["tensors"] == 62
    assert all(own[key].dtype == torch.float32 and torch.equal(own[key], value) for key, value in state.items())


def test_hps_reads_the_official_tokens(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    assert np.array_equal(hps.tokenizer(TEXTS).numpy(), hps_truth["tokens"])


@pytest.mark.parametrize("antialias", [True, False])
def test_hps_sees_the_official_pixels(antialias: bool, hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """Within a float32 ulp or two of [-2.5, 3.2]: every eighth pixel, and the length of each picture as a whole."""
    kept, norm = (hps_truth[f"pixels{kind}{'' if antialias else '_no_antialias'}"] for kind in ("", "_norm"))
    if antialias:
        ours = hps.official_pixels(list(PICTURES.values()))
    else:
        ours = torch.cat([letterbox(to_tensor([p]), 224, antialias=False) for p in PICTURES.values()])
    np.testing.assert_allclose(ours[..., ::8, ::8].numpy(), kept, rtol=0, atol=2e-6)
    np.testing.assert_allclose(ours.double().flatten(1).norm(dim=1).numpy(), norm, rtol=1e-6)


def test_hps_scores_as_the_package(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """End to end; and without antialiasing, the package's own difference, which no tolerance would hide."""
    ours = scores_of(hps, list(PICTURES.values()), TEXTS)
    assert score_difference(ours, hps_truth["scores"]) <= SCORE
    assert score_difference(ours, hps_truth["scores_no_antialias"]) > 0.1
    pixels = torch.cat([letterbox(to_tensor([p]), 224, antialias=False) for p in PICTURES.values()])
    assert score_difference(scores_of(hps, [], TEXTS, pixels), hps_truth["scores_no_antialias"]) <= SCORE


def test_hps_features_are_the_packages(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    with torch.no_grad():
        ours = hps.encode_pixels(hps.official_pixels(list(PICTURES.values())))
        words = torch.nn.functional.normalize(hps.model.encode_text(hps.tokenizer(TEXTS)), dim=-1)  # type: ignore[operator]
    assert score_difference(ours, hps_truth["image_features"]) <= SCORE
    assert score_difference(words, hps_truth["text_features"]) <= SCORE


@pytest.mark.parametrize("pair", HPS["gradients"])
def test_hps_gradients_are_the_packages(
    pair: Sequence[str], hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]
) -> None:
    picture, prompt = index(pair)
    theirs, norm = (hps_truth[f"gradient{kind}_{'_'.join(pair)}"] for kind in ("", "_norm"))
    pixels = hps.official_pixels([list(PICTURES.values())[picture]])[0]
    assert gradient_difference(hps, pixels, TEXTS[prompt], theirs, norm) <= GRADIENT


def test_hps_with_a_transposed_projection_would_fail(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """The text's projection is square: its shape does not tell, only scores do."""
    projection: Any = hps.model.text_projection
    kept = projection.detach().clone()
    try:
        projection.data.copy_(kept.T)
        assert score_difference(scores_of(hps, list(PICTURES.values()), TEXTS), hps_truth["scores"]) > 0.1
    finally:
        projection.data.copy_(kept)


def test_hps_with_a_crop_would_fail(hps: HPSv2, hps_truth: dict[str, npt.NDArray[Any]]) -> None:
    """CLIP's resize and crop, which TDPO's code feeds to HPSv2, is another reward."""
    from overopt_bench.encoders.preprocessing import clip_pixels

    ours = scores_of(hps, [], TEXTS, clip_pixels(list(PICTURES.values()), 224))
    assert score_difference(ours, hps_truth["scores"]) > 0.1


def test_hps_v2_at_its_true_size_has_686_tensors() -> None:
    """open_clip's ViT-H-14, which is built where no configuration lies beside the weights; on the meta device."""
    from open_clip.model import CLIP

    from overopt_bench.rewards.hpsv2 import architecture

    with torch.device("meta"):
        model = CLIP(**architecture(Path("/nowhere")))
    assert len(model.state_dict()) == 686
    assert sum(p.numel() for p in model.parameters()) == 986_109_441


def test_normalise_is_torchvisions() -> None:
    """To the bit, so that the pixels above say something about the bytes."""
    from torchvision.transforms.functional import normalize

    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(normalise(images), normalize(images, MEAN, STD))
