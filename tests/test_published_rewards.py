"""The published rewards on small random checkpoints in their real formats: formulas, transforms, gradients, errors.

The truth is from outside where there is one: golden scores of LAION's head (NumPy, float64), ``transformers``' own CLIP in
float64 under the formula of PickScore's page, the Hub's and torchvision's transforms, finite differences, numbers worked
out by hand. The authors' packages are in ``test_against_official.py``. The weights come from ``official.weights.fill``,
under which every score depends on picture and prompt; transformers' own initialisation leaves ImageReward nearly blind.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import pickle
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official.weights import PROMPTS, fill, pictures
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from overopt_bench import cli
from overopt_bench.encoders.preprocessing import (
    MEAN,
    STD,
    clip_pixels,
    differentiable_pixels,
    letterbox,
    to_pil,
    to_tensor,
)
from overopt_bench.errors import UserError
from overopt_bench.registry import get_reward, get_suite, rewards
from overopt_bench.rewards.clip import AESTHETIC_HEAD, RegressionHead, load_clip
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.types import Reward
from overopt_bench.weights import load_strictly, read_state

CLIP, PICK = "clip-vit-large-patch14", "PickScore_v1"
NAMES = ("aesthetic", "clipscore", "pickscore", "imagereward", "hpsv2", "hpsv2_1")
FILES = {
    "aesthetic": f"{CLIP}/model.safetensors", "clipscore": f"{CLIP}/model.safetensors", "pickscore": f"{PICK}/model.safetensors",
    "imagereward": "ImageReward/ImageReward.pt", "hpsv2": "HPSv2/HPS_v2_compressed.pt", "hpsv2_1": "HPSv2/HPS_v2.1_compressed.pt",
}  # fmt: skip
LIMITS = {"clipscore": 77, "pickscore": 77, "imagereward": 35, "hpsv2": 77, "hpsv2_1": 77}
PICTURES, TEXTS = pictures(), list(PROMPTS.values())
SIZES = [(512, 512), (451, 300), (160, 200), (227, 224), (224, 224)]  # width x height
pytestmark = pytest.mark.usefixtures("one_thread")
BLACK = torch.tensor([-mean / std for mean, std in zip(MEAN, STD, strict=True)])


def filled(state: Mapping[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    return fill({key: tuple(value.shape) for key, value in state.items()}, seed)


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


def load(name: str, folder: Path) -> Any:
    """A reward with a suite, and so a CLIP, of its own."""
    return get_reward(name, get_suite("sd14", weights=folder))


@pytest.fixture(scope="session")
def loaded(weights: Path) -> dict[str, PublishedReward]:
    """All six, to be read only."""
    return {name: load(name, weights) for name in NAMES}


def noise(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Images ``[n, 3, height, width]`` with detail, away from 0 and 1, where a clamp has no gradient."""
    return 0.2 + 0.6 * torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


@torch.no_grad()
def ask(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Tensor:
    return reward(images, prompts)


def test_the_six_are_all_the_suite_has_besides_jpeg() -> None:
    assert set(rewards.names("sd")) == {*NAMES, "jpeg_compressibility", "jpeg_incompressibility"}


# --- LAION's aesthetic predictor


@pytest.fixture(scope="module")
def head() -> RegressionHead:
    model = RegressionHead(768)
    load_strictly(model, read_state(AESTHETIC_HEAD), AESTHETIC_HEAD)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(Path(__file__).parent / "golden" / "aesthetic_head.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def test_aesthetic_head_is_the_published_one(head: RegressionHead, golden: dict[str, Tensor]) -> None:
    """Against NumPy in float64: half an ulp of 5 in float32. Without the normalisation it would be another score."""
    ours = head(F.normalize(golden["vectors"]))
    assert (ours - golden["scores"]).abs().max() <= 5e-7
    exact = head.double()(F.normalize(golden["vectors"].double()))
    head.float()
    assert (exact - golden["scores"]).abs().max() <= 1e-12
    assert (golden["scores_without_normalisation"] - golden["scores"]).abs().median() > 1


def test_aesthetic_scores_stay_within_their_bounds(head: RegressionHead, golden: dict[str, Tensor]) -> None:
    """No image can leave [-12.76, 23.23]; the embeddings that reach the ends are the head's own direction."""
    low, high = golden["score_bounds"].tolist()
    assert (low, high) == pytest.approx((-12.759, 23.232), abs=1e-3)
    direction = F.normalize(golden["effective_weight"].float(), dim=0)
    ends = head(torch.stack([-direction, direction]))
    assert ends.tolist() == pytest.approx([low, high], abs=1e-5)
    inside = head(F.normalize(torch.randn(4096, 768, generator=torch.Generator().manual_seed(0))))
    assert low < inside.min() and inside.max() < high


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_aesthetic_does_not_see_the_embeddings_length(factor: float, weights: Path) -> None:
    reward = load("aesthetic", weights)
    pixels = reward.official_pixels(list(PICTURES.values()))
    with torch.no_grad():
        before = reward.score_pixels(pixels, [""] * 7)
        reward.clip.visual_projection.weight *= factor
        after = reward.score_pixels(pixels, [""] * 7)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert before.std() > 0.1


def test_aesthetic_is_the_head_on_clips_embedding(weights: Path, golden: dict[str, Tensor]) -> None:
    """The whole path in float64: transformers' CLIP, NumPy's weight and bias of the affine head."""
    clip = transformers_clip(weights / CLIP)
    with torch.no_grad():
        embedding = clip.get_image_features(pixel_values=hub_pixels()).pooler_output
    unit = embedding / embedding.norm(dim=-1, keepdim=True)
    truth = unit @ golden["effective_weight"] + golden["effective_bias"]
    ours = load("aesthetic", weights).score_pictures(list(PICTURES.values()), [""] * 7, 512)
    torch.testing.assert_close(ours.double(), truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_are_equal_to_the_bit(name: str, loaded: dict[str, PublishedReward]) -> None:
    """No dropout and no stochastic depth, although the networks have both; and frozen."""
    model = loaded[name].model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    images = noise(2, 64, 64)
    assert torch.equal(ask(loaded[name], images, TEXTS[:2]), ask(loaded[name], images, TEXTS[:2]))


# --- PickScore and CLIPScore against transformers in float64


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


@torch.no_grad()
def formula(folder: Path, words: Path, act: str | None = None) -> tuple[Tensor, Tensor]:
    """Cosines ``[pictures, prompts]`` and exp(logit_scale), as on PickScore's page."""
    from transformers import CLIPTokenizer

    clip = transformers_clip(folder, act)
    tokens = CLIPTokenizer.from_pretrained(words)(
        TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    image = clip.get_image_features(pixel_values=hub_pixels()).pooler_output
    image = image / torch.norm(image, dim=-1, keepdim=True)
    text = clip.get_text_features(**tokens).pooler_output
    text = text / torch.norm(text, dim=-1, keepdim=True)
    return image @ text.T, clip.logit_scale.exp()


def table_of(reward: Reward) -> Tensor:
    """Scores ``[pictures, prompts]`` through the official transform."""
    pairs = [image for image in PICTURES.values() for _ in TEXTS]
    return reward.score_pictures(pairs, TEXTS * len(PICTURES), 512).reshape(-1, len(TEXTS)).double()


def test_clipscore_is_a_hundred_cosines(weights: Path, loaded: dict[str, PublishedReward]) -> None:
    cosine, _ = formula(weights / CLIP, weights / CLIP)
    difference = (table_of(loaded["clipscore"]) - 100 * cosine).abs().max()
    assert difference / (100 * cosine).std() <= 1e-5
    assert (cosine < 0).any()  # not clamped at 0


def test_pickscore_is_its_pages_formula(weights: Path, loaded: dict[str, PublishedReward]) -> None:
    """exp(logit_scale) times the cosine; the exponential is of the checkpoint, here ln 100."""
    cosine, scale = formula(weights / PICK, weights / CLIP)
    assert float(scale) == pytest.approx(100, rel=1e-6)
    difference = (table_of(loaded["pickscore"]) - scale * cosine).abs().max()
    assert difference / (scale * cosine).std() <= 1e-5


@pytest.mark.parametrize(("name", "folder", "wrong"), [("pickscore", PICK, "quick_gelu"), ("clipscore", CLIP, "gelu")])
def test_gelu_and_quick_gelu_are_not_one(
    name: str, folder: str, wrong: str, weights: Path, loaded: dict[str, PublishedReward]
) -> None:
    """PickScore has GELU, OpenAI's CLIP QuickGELU; the keys are equal, so only scores tell."""
    cosine, _ = formula(weights / folder, weights / CLIP, act=wrong)
    assert (table_of(loaded[name]) - 100 * cosine).abs().max() / (100 * cosine).std() > 1e-3


def test_clip_features_of_the_suite_are_the_hubs(weights: Path) -> None:
    """What diversity is measured with: the unit embedding of 8-bit pictures, against float64."""
    suite = get_suite("sd14", weights=weights)
    images = to_tensor([picture(224, 224), picture(224, 224, 1)])
    with torch.no_grad():
        truth = transformers_clip(weights / CLIP).get_image_features(pixel_values=hub_pixels(to_pil(images)))
        ours = suite.clip_features(images)
    torch.testing.assert_close(ours.double(), F.normalize(truth.pooler_output, dim=-1), rtol=0, atol=1e-6)
    assert ours.shape == (2, suite.clip_dim)


# --- transforms


@pytest.mark.parametrize("size", SIZES)
def test_clip_pixels_are_the_hubs(size: tuple[int, int]) -> None:
    """Equal to the bit with ``CLIPImageProcessorPil``, the processor of PickScore and CLIP."""
    from transformers import CLIPImageProcessorPil

    image = picture(*size)
    truth = CLIPImageProcessorPil()(image, return_tensors="pt").pixel_values
    assert torch.equal(clip_pixels([image], 224), truth)


@pytest.mark.parametrize("size", SIZES)
def test_the_other_crop_is_torchvisions(size: tuple[int, int]) -> None:
    """Equal to the bit with the transform of OpenAI's and ImageReward's code; one pixel from the Hub's on 227 x 224."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor

    transform = Compose([Resize(224, InterpolationMode.BICUBIC), CenterCrop(224), ToTensor(), Normalize(MEAN, STD)])
    image = picture(*size)
    ours = clip_pixels([image], 224, crop="torchvision")
    assert torch.equal(ours, transform(image)[None])
    assert torch.equal(ours, clip_pixels([image], 224)) == (size != (227, 224))


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [*SIZES, (448, 224), (100, 333)])
def test_letterbox_is_torchvisions_resize_and_pad(size: tuple[int, int], antialias: bool) -> None:
    """HPSv2's own steps, written with torchvision: longer side 224, black, then the mean; neither rounded nor clamped."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, pad, pil_to_tensor, resize

    image = picture(*size)
    scale = 224 / max(size)
    width, height = (round(side * scale) for side in size)
    tensor = pil_to_tensor(image).float() / 255
    tensor = resize(tensor, [height, width], InterpolationMode.BICUBIC, antialias=antialias)
    left, top = (224 - width) // 2, (224 - height) // 2
    tensor = pad(tensor, [left, top, 224 - width - left, 224 - height - top], fill=0)
    ours = letterbox(to_tensor([image]), 224, antialias)
    torch.testing.assert_close(ours, normalize(tensor, MEAN, STD)[None], rtol=0, atol=2e-6)


def test_hps_keeps_both_ends_of_a_wide_picture(loaded: dict[str, PublishedReward]) -> None:
    """448 x 224 with a red left and a blue right third: 74 red columns and the top quarter black; CLIP's crop: 37."""
    pixels = loaded["hpsv2"].official_pixels([PICTURES["thirds"]])[0]
    assert BLACK.tolist() == pytest.approx([-1.79, -1.75, -1.48], abs=0.005)
    for rows in (pixels[:, :56], pixels[:, 168:]):
        torch.testing.assert_close(rows, BLACK.view(3, 1, 1).expand_as(rows))
    red, blue = (
        torch.tensor([(c - m) / s for c, m, s in zip(colour, MEAN, STD, strict=True)])
        for colour in ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    )
    torch.testing.assert_close(pixels[:, 112, 0], red)
    torch.testing.assert_close(pixels[:, 112, -1], blue)
    cropped = clip_pixels([PICTURES["thirds"]], 224)[0]
    wholly_red = [int(((p[:, 112] - red[:, None]).abs().amax(0) < 0.05).sum()) for p in (pixels, cropped)]
    assert wholly_red == pytest.approx([74, 37], abs=2)
    assert (cropped[:, 0] - BLACK.view(3, 1)).abs().max() > 1


@pytest.mark.parametrize(
    ("name", "largest", "rms"), [("smooth", 0.016, 0.005), ("noise", 0.045, 0.0055)]
)  # one grey level is 0.0146
def test_the_differentiable_path_is_near_the_official_one(name: str, largest: float, rms: float) -> None:
    """On 512 x 512, in normalised units: 0.0152 and 0.0043 rms on a smooth picture, 0.0394 and 0.0049 on noise.

    Rounding to 8 bits alone gives 0.0042 rms, so that the bound from below says that it is left out.
    """
    official, ours = clip_pixels([PICTURES[name]], 224), differentiable_pixels(to_tensor([PICTURES[name]]), 224)
    difference = (official - ours).double()
    assert 0.003 < difference.pow(2).mean().sqrt() <= rms and difference.abs().max() <= largest
    assert ours.min() >= BLACK.min() and ours.max() <= (1 - MEAN[2]) / STD[2] + 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_the_differentiable_path_is_torchvisions_on_tensors(size: tuple[int, int]) -> None:
    """``Resize(224, BICUBIC)``, clamp, then the crop of the Hub."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, resize

    image = to_tensor([picture(*size)])
    resized = resize(image, [224], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    top, left = (resized.shape[-2] - 224) // 2, (resized.shape[-1] - 224) // 2
    truth = normalize(resized[..., top : top + 224, left : left + 224], MEAN, STD)
    torch.testing.assert_close(differentiable_pixels(image, 224), truth, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_two_paths_score_alike(name: str, loaded: dict[str, PublishedReward]) -> None:
    """Within a twentieth of the deviation over pictures; HPSv2's are one, up to the rounding of the input."""
    images = to_tensor([PICTURES["smooth"], PICTURES["noise"]])
    official = ask(loaded[name], images, TEXTS[:2])
    smooth = loaded[name](images.clone().requires_grad_(), TEXTS[:2])
    spread = table_of(loaded[name]).std(0).mean()
    limit = 1e-6 if name.startswith("hps") else 0.05
    assert (official - smooth).abs().max() / spread <= limit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_which_path_an_image_takes(
    name: str, with_gradient: bool, loaded: dict[str, PublishedReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``requires_grad`` the tensor path, else 8-bit pictures, so that nobody evaluates on the wrong one."""
    reward, taken = loaded[name], []

    def spy(way: str, original: Callable[[Any], Tensor], images: Any) -> Tensor:
        taken.append(way)
        return original(images)

    for way in ("official_pixels", "differentiable_pixels"):
        monkeypatch.setattr(reward, way, partial(spy, way, getattr(reward, way)))
    images = noise(2, 64, 64).requires_grad_(with_gradient)
    scores = reward(images, TEXTS[:2])
    assert taken == ["differentiable_pixels" if with_gradient else "official_pixels"]
    assert scores.requires_grad == with_gradient


# --- gradients


@pytest.mark.parametrize("name", NAMES)
def test_finite_differences_of_the_network(name: str, weights: Path) -> None:
    """20 pixels in float64, central differences extrapolated once (error of order h^4): autograd agrees to 1e-5."""
    reward = load(name, weights)
    reward.model.double()
    pixels = reward.differentiable_pixels(noise(1, 224, 224)).double().requires_grad_()
    prompts = [TEXTS[3]]
    (gradient,) = torch.autograd.grad(reward.score_pixels(pixels, prompts).sum(), pixels)
    places = np.random.default_rng(0).choice(pixels.numel(), 20, replace=False)

    @torch.no_grad()
    def slope(place: int, h: float) -> float:
        ends = pixels.detach().repeat(2, 1, 1, 1)
        ends.view(2, -1)[:, place] += torch.tensor([h, -h], dtype=torch.float64)
        up, down = reward.score_pixels(ends, prompts * 2).tolist()
        return float(up - down) / (2 * h)

    truth = torch.tensor([(4 * slope(p, 0.01) - slope(p, 0.02)) / 3 for p in places], dtype=torch.float64)
    ours = gradient.flatten()[torch.from_numpy(places)]
    assert truth.abs().min() > 0
    assert float((ours - truth).norm() / truth.norm()) <= 1e-5


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (64, 48)])
@pytest.mark.parametrize("transform", [differentiable_pixels, letterbox])
def test_finite_differences_of_the_transform(transform: Callable[[Tensor, int], Tensor], size: tuple[int, int]) -> None:
    """Inside [0, 1] it is affine, so large steps are exact: 20 pixels, to the resolution of its float32.

    A central area, which the crop keeps; d/dx of <v, pixels> for one fixed v.
    """
    height, width = size
    images = 0.4 + 0.2 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    leaf = images.clone().requires_grad_()
    pixels = transform(leaf, 224)
    direction = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((pixels * direction).sum(), leaf)
    rng, h = np.random.default_rng(0), 0.25
    truth, ours = [], []
    for _ in range(20):
        c, y, x = int(rng.integers(3)), height // 2 + int(rng.integers(-9, 9)), width // 2 + int(rng.integers(-9, 9))
        ends = []
        for sign in (1, -1):
            moved = images.clone()
            moved[0, c, y, x] += sign * h
            ends.append(transform(moved, 224).double())
        truth.append(float(((ends[0] - ends[1]) * direction.double()).sum() / (2 * h)))
        ours.append(float(gradient[0, c, y, x]))
    np.testing.assert_allclose(ours, truth, rtol=0, atol=1e-5 * float(np.abs(truth).max()))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_the_images_through_both(name: str, weights: Path, loaded: dict[str, PublishedReward]) -> None:
    """The whole float32 path equals the transform's gradient on the network's in float64, whose parts are tested above."""
    images = noise(1, 300, 200).requires_grad_()
    (whole,) = torch.autograd.grad(loaded[name](images, [TEXTS[0]]).sum(), images)
    exact = load(name, weights)
    exact.model.double()
    pixels = exact.differentiable_pixels(images)
    deep = pixels.detach().double().requires_grad_()
    (outer,) = torch.autograd.grad(exact.score_pixels(deep, [TEXTS[0]]).sum(), deep)
    (truth,) = torch.autograd.grad(pixels, images, outer.float())
    assert float((whole - truth).norm() / truth.norm()) <= 1e-4
    assert truth.norm() > 0


# --- batches, sizes, prompts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("with_gradient", [True, False])
def test_scores_do_not_depend_on_the_batch(
    name: str, with_gradient: bool, loaded: dict[str, PublishedReward], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permuting images and prompts permutes the scores; batches and micro-batches of 1, 3 and 8 agree."""
    reward, images = loaded[name], noise(8, 64, 48).requires_grad_(with_gradient)
    prompts = [f"{word}, {text[:60]}" for word, text in zip("abcdefgh", TEXTS * 2, strict=False)]
    whole = reward(images, prompts).detach()
    assert whole.shape == (8,) and whole.dtype == torch.float32
    limit = 1e-5 * float(whole.abs().max())
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert (reward(images[order], [prompts[i] for i in order]).detach() - whole[order]).abs().max() <= limit
    for n in (1, 3):
        parts = [reward(images[k : k + n], prompts[k : k + n]).detach() for k in range(0, 8, n)]
        assert (torch.cat(parts) - whole).abs().max() <= limit
        with monkeypatch.context() as patch:
            patch.setattr("overopt_bench.rewards.published.MICRO_BATCH", n)
            assert (reward(images, prompts).detach() - whole).abs().max() <= limit
            seen = reward.score_pictures(to_pil(images), prompts, 512)
    assert (seen - ask(reward, images.detach(), prompts)).abs().max() <= limit
    assert whole.std() > 100 * limit


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (224, 224), (300, 200), (200, 300)])
def test_images_of_any_size(name: str, size: tuple[int, int], loaded: dict[str, PublishedReward]) -> None:
    """Both paths take them; the tensor and the picture of the same pixels score alike; features are unit vectors."""
    reward, images = loaded[name], noise(2, *size)
    scores = ask(reward, images, TEXTS[:2])
    assert torch.equal(scores, reward.score_pictures(to_pil(images), TEXTS[:2], 512))
    assert bool(reward(images.requires_grad_(), TEXTS[:2]).isfinite().all())
    features = reward.features(images.detach())
    assert features.shape == (2, reward.feature_dim)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [*NAMES, "jpeg_compressibility", "jpeg_incompressibility"])
def test_an_image_that_is_not_finite_is_an_error(name: str, bad: float, weights: Path) -> None:
    """As 8-bit it would become black or white without a word, and score."""
    images = noise(2, 64, 64)
    images[1, 0, 5, 5] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinity"):
        ask(load(name, weights), images, TEXTS[:2])


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_with_a_gradient_stays_one(name: str, loaded: dict[str, PublishedReward]) -> None:
    """The tensor path hides nothing either: that image's score is NaN, the other's is not."""
    images = noise(2, 224, 224)
    images[1, 0, 100, 100] = float("nan")
    scores = loaded[name](images.requires_grad_(), TEXTS[:2])
    assert scores.isnan().tolist() == [False, True]


@pytest.mark.parametrize("name", LIMITS)
def test_long_prompts_are_cut_with_one_warning(name: str, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, once for the reward, with the limit."""
    reward, images = load(name, weights), noise(2, 32, 32)
    capsys.readouterr()
    ask(reward, images[:1], ["a cat"])
    assert capsys.readouterr().err == ""
    for _ in range(2):
        ask(reward, images, ["a cat", "red " * 100])
    ask(reward, images[:1], ["blue " * 100])
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"warning: {name} reads {LIMITS[name]} tokens")
    assert "'red red red" in err and len(err) < 250


@pytest.mark.parametrize("name", LIMITS)
def test_transformers_has_nothing_to_add(name: str, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its own warning of long texts would say "indexing errors", which there are none of: they are cut."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        ask(load(name, weights), noise(1, 32, 32), ["red " * 100])
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages


@pytest.mark.parametrize("name", LIMITS)
def test_the_limit_is_where_the_warning_says(
    name: str, loaded: dict[str, PublishedReward], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "red" is one token in both vocabularies, and two more are the ends: limit - 2 words fit, what follows is unread."""
    reward, room, image = loaded[name], LIMITS[name] - 2, noise(1, 32, 32)
    monkeypatch.setattr(reward, "_warned", False)
    fits = ask(reward, image, ["red " * (room - 1) + "red"])
    assert "warning" not in capsys.readouterr().err
    shorter = ask(reward, image, ["red " * (room - 2) + "red"])
    longer = ask(reward, image, ["red " * room + "blue"])
    assert "warning: " in capsys.readouterr().err
    assert torch.equal(longer, fits) and not torch.equal(shorter, fits)


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_counts_where_it_should(name: str, loaded: dict[str, PublishedReward]) -> None:
    """An empty prompt is a prompt; capitals do not count for the lower-casing tokenizers."""
    images = noise(1, 32, 32).repeat(4, 1, 1, 1)
    empty, cat, upper, dog = ask(loaded[name], images, ["", "a cat", "A CAT", "a dog"]).tolist()
    assert np.isfinite(empty) and cat == pytest.approx(upper, abs=1e-6)
    if loaded[name].needs_prompt:
        assert len({round(s, 4) for s in (empty, cat, dog)}) == 3
    else:
        assert empty == pytest.approx(cat, abs=1e-6) and cat == pytest.approx(dog, abs=1e-6)


def test_an_official_end_token_is_kept_when_a_prompt_is_cut(loaded: dict[str, PublishedReward]) -> None:
    tokens = loaded["clipscore"].tokens(["red " * 100, "a"])  # type: ignore[attr-defined]
    assert tokens.shape == (2, 77) and tokens[0, -1] == 49407 and tokens[0, 0] == 49406


# --- ensembles


class Pixel(Reward):
    """Scores an image by ten times one value of its first pixel; channel k for the k-th member."""

    differentiable = True

    def __init__(self, channel: int, factor: float = 10.0) -> None:
        self.channel, self.factor = channel, factor

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.factor * images[:, self.channel, 0, 0]


def first_pixels(*values: tuple[float, float]) -> Tensor:
    """Images ``[B, 3, 2, 2]`` whose first pixel's two channels are given in tenths."""
    images = torch.zeros(len(values), 3, 2, 2)
    images[:, :2, 0, 0] = torch.tensor(values) / 10
    return images


BASE = first_pixels((1, 2), (2, 4), (3, 6))  # means 2 and 4, deviations (n - 1) 1 and 2


def ensemble(kind: str, *members: Reward) -> Any:
    cls: Any = rewards.get(f"{kind}:aesthetic+imagereward", "sd")
    return cls(members or (Pixel(0), Pixel(1)))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # of (4, 2), (2, 4), (1, 8): standardised (2, -1), (0, 0), (-1, 2)
        ("mean", [0.5, 0.0, 0.5]),
        ("min", [-1.0, 0.0, -1.0]),
        ("uwo", [0.5 - 0.5 * 2.25, 0.0, 0.5 - 0.5 * 2.25]),  # population variance of (2, -1) is 1.5^2
    ],
)
def test_ensembles_by_hand(kind: str, expected: list[float]) -> None:
    reward = ensemble(kind)
    facts = reward.calibrate(BASE, [""] * 3)
    assert facts == pytest.approx(
        {"aesthetic/mean": 2, "aesthetic/std": 1, "imagereward/mean": 4, "imagereward/std": 2}
    )
    scores = reward(first_pixels((4, 2), (2, 4), (1, 8)), [""] * 3)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["mean", "min", "uwo"])
def test_ensembles_do_not_see_a_members_scale(kind: str) -> None:
    """Standardising takes a factor out again; base samples themselves have mean 0 under ``mean``."""
    one, other = ensemble(kind), ensemble(kind, Pixel(0, 1000.0), Pixel(1, 0.1))
    images = torch.rand(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    for reward in (one, other):
        reward.calibrate(BASE, [""] * 3)
    torch.testing.assert_close(one(images, [""] * 5), other(images, [""] * 5), rtol=1e-4, atol=1e-4)
    if kind == "mean":
        assert one(BASE, [""] * 3).mean().item() == pytest.approx(0, abs=1e-5)


def test_the_gradient_of_min_flows_to_one_member() -> None:
    """To the lowest of each image: d score / d first pixel = 10 / deviation there and 0 elsewhere; mean gives each half."""
    lowest, average = ensemble("min"), ensemble("mean")
    for reward in (lowest, average):
        reward.calibrate(BASE, [""] * 3)
    images = first_pixels((4, 2), (1, 8)).requires_grad_()
    (gradient,) = torch.autograd.grad(lowest(images, ["", ""]).sum(), images)
    torch.testing.assert_close(gradient[:, :2, 0, 0], torch.tensor([[0.0, 5.0], [10.0, 0.0]]))
    (gradient,) = torch.autograd.grad(average(images, ["", ""]).sum(), images)
    torch.testing.assert_close(gradient[:, :2, 0, 0], torch.tensor([[5.0, 2.5], [5.0, 2.5]]))


@pytest.mark.parametrize("suite", ["sd14", "mini"])
@pytest.mark.parametrize("kind", ["mean", "min", "uwo"])
def test_an_ensemble_of_real_rewards_is_that_of_its_members(kind: str, suite: str, weights: Path) -> None:
    """``min:aesthetic+imagereward`` and the others, in the mini suite too, with their members' scores put together here."""
    world = get_suite(suite, weights=None if suite == "mini" else weights)
    side = 32 if suite == "mini" else 64
    base, images = noise(6, side, side), noise(3, side, side, seed=1)
    words = list(world.prompts["train"][:6])
    reward = get_reward(f"{kind}:aesthetic+imagereward", world)
    assert reward.name == f"{kind}:aesthetic+imagereward" and reward.needs_prompt and reward.differentiable
    assert reward.needs_base_samples and reward.feature_dim == get_reward("aesthetic", world).feature_dim
    reward.calibrate(base, words)
    parts = []
    for name in ("aesthetic", "imagereward"):
        member = get_reward(name, world)
        before = ask(member, base, words)
        parts.append((ask(member, images, words[:3]) - before.mean()) / before.std())
    a, b = parts
    truth = {"mean": (a + b) / 2, "min": torch.minimum(a, b), "uwo": (a + b) / 2 - 0.5 * ((a - b) / 2) ** 2}[kind]
    torch.testing.assert_close(ask(reward, images, words[:3]), truth, rtol=1e-4, atol=1e-4)
    assert torch.equal(reward.features(images), get_reward("aesthetic", world).features(images))
    assert re.fullmatch(r"aesthetic \S.*; imagereward \S.*", str(reward.weights_hash()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mean:aesthetic", "needs two or more different rewards"),
        ("min:", "needs two or more different rewards"),
        ("min:aesthetic+aesthetic", "needs two or more different rewards"),
        ("uwo:aesthetic+pikscore", "did you mean 'pickscore'"),
        ("mean:aesthetic+min:clipscore+pickscore", "members are plain rewards"),
        ("median:aesthetic+pickscore", "no reward"),
        ("mean:aesthetic+", "no reward"),
        ("mean:aesthetic+human", "not in the suite 'sd'"),
    ],
)
def test_ensembles_that_do_not_exist(name: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        rewards.get(name, "sd")


def test_an_ensemble_without_base_samples_says_so() -> None:
    with pytest.raises(UserError, match=r"min:aesthetic.imagereward is standardised on base samples and has seen none"):
        ensemble("min")(BASE, [""] * 3)


def test_a_member_that_is_constant_is_named() -> None:
    flat = first_pixels((1, 2), (1, 4), (1, 6))
    with pytest.raises(UserError, match="aesthetic gives every base sample the same score"):
        ensemble("uwo").calibrate(flat, [""] * 3)


# --- checkpoints that are not


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


STRANGERS = {
    "aesthetic": FILES["pickscore"], "clipscore": FILES["pickscore"], "pickscore": FILES["clipscore"],
    "imagereward": FILES["hpsv2"], "hpsv2": FILES["imagereward"], "hpsv2_1": FILES["imagereward"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_another_rewards_checkpoint(name: str, weights: Path, tmp_path: Path) -> None:
    """HPSv2's file in ImageReward's place and so on: keys or shapes are named, and nothing is loaded in part."""
    path = spoiled(weights, tmp_path, FILES[name])
    shutil.copyfile(weights / STRANGERS[name], path)
    message = complaint(name, tmp_path)
    assert str(path) in message and re.search("lacks|has besides|has shapes|nothing to give for", message)
    assert re.search(r"visual|vision|text|position", message)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_keys_and_shapes_are_strict(name: str, change: str, weights: Path, tmp_path: Path) -> None:
    """One tensor too few, too many, or longer than it should be: the first is named."""
    path = spoiled(weights, tmp_path, FILES[name])
    state = get(path)
    key = next(k for k in sorted(state) if k.endswith("bias") and "vision_proj" not in k and "text_proj." not in k)
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["mlp.surprise"] = torch.zeros(3)
    else:
        state[key] = torch.zeros(len(state[key]) + 1)
    put(path, state)
    message = complaint(name, tmp_path)
    word = {"missing": "lacks", "extra": "has besides", "shape": "has shapes"}[change]
    assert f"{path} is not the checkpoint of this model: it {word} " in message
    assert ("surprise" if change == "extra" else "bias") in message
    if change == "shape":
        assert re.search(r"\(\d+,\), not \(\d+,\)", message)


@pytest.mark.parametrize("name", ["pickscore", "imagereward", "hpsv2"])
def test_a_text_file_or_half_a_file(name: str, weights: Path, tmp_path: Path) -> None:
    path = spoiled(weights, tmp_path, FILES[name])
    raw = path.read_bytes()
    for content in (b"<html>404: not found</html>", raw[: len(raw) // 2], b""):
        path.write_bytes(content)
        assert re.search(
            rf"{re.escape(str(path))} cannot be read as weights .*fetch it again", complaint(name, tmp_path)
        )


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["imagereward", "hpsv2", "hpsv2_1"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(name: str, writer: str, weights: Path, tmp_path: Path) -> None:
    """``weights_only``: the code does not run, and the file is named."""
    path, proof = spoiled(weights, tmp_path, FILES[name]), tmp_path / "it ran"
    content = {"state_dict": get(path), "hello": Payload(proof)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert f"{path} cannot be read as weights" in complaint(name, tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["imagereward", "hpsv2"])
def test_a_checkpoint_that_is_a_list(name: str, weights: Path, tmp_path: Path) -> None:
    path = spoiled(weights, tmp_path, FILES[name])
    torch.save([torch.zeros(2)], path)
    assert f"{path} holds a list, not a state dict" in complaint(name, tmp_path)


PATCH = "blip.visual_encoder.patch_embed.proj.weight"
NONSENSE: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "a matrix for the patches": ("imagereward", lambda state: state | {PATCH: torch.zeros(64, 3)}),
    "a vector for the positions": ("imagereward", lambda state: state | {"blip.visual_encoder.pos_embed": torch.zeros(9)}),
    "no blocks": ("imagereward", lambda state: {key: v for key, v in state.items() if ".blocks." not in key}),
    "a number for a tensor": ("imagereward", lambda state: state | {"mlp.layers.0.bias": 3}),
    "a training checkpoint": ("hpsv2", lambda state: {"epoch": 3, **state}),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_a_checkpoint_that_makes_no_sense(case: str, weights: Path, tmp_path: Path) -> None:
    """What the model's sizes are read from is not there, or is no tensor: one line that names the file."""
    name, change = NONSENSE[case]
    path = spoiled(weights, tmp_path, FILES[name])
    put(path, change(get(path)))
    assert str(path) in complaint(name, tmp_path)


MISSING = {
    "aesthetic": ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", CLIP),
    "pickscore": ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", PICK),
    "imagereward": ("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", "ImageReward"),
    "hpsv2": ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", "HPSv2"),
    "hpsv2_1": ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", "HPSv2"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_names_the_command(name: str, weights: Path, tmp_path: Path) -> None:
    """The repository, its files, the pinned revision and the folder, ready to be pasted into a shell."""
    path = spoiled(weights, tmp_path, FILES[name])
    path.unlink()
    hub, revision, folder = MISSING[name]
    files = {
        "imagereward": "ImageReward.pt med_config.json", "hpsv2": "HPS_v2_compressed.pt", "hpsv2_1": "HPS_v2.1_compressed.pt",
        "pickscore": "config.json model.safetensors", "aesthetic": "config.json model.safetensors vocab.json merges.txt",
    }[name]  # fmt: skip
    message = complaint(name, tmp_path)
    assert f"{tmp_path / folder} lacks {path.name}; get it: " in message
    assert message.endswith(f"hf download {hub} {files} --revision {revision} --local-dir {tmp_path / folder}")


def test_position_ids_of_old_files_are_ignored(weights: Path, tmp_path: Path) -> None:
    """Checkpoints of 2022 hold two buffers more; the scores are the same."""
    path = spoiled(weights, tmp_path, FILES["pickscore"])
    state = get(path)
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    put(path, state)
    old, new = load_clip(path.parent), load_clip(weights / PICK)
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


def test_hashes_are_those_of_the_files(weights: Path, loaded: dict[str, PublishedReward]) -> None:
    from hashlib import sha256

    for name, reward in loaded.items():
        expected = sha256((weights / FILES[name]).read_bytes()).hexdigest()
        if name == "aesthetic":
            expected = f"{sha256(AESTHETIC_HEAD.read_bytes()).hexdigest()} on {expected}"
        assert reward.weights_hash() == expected


# --- overopt-bench score


def score_command(folder: Path, names: Sequence[str], *rest: str) -> list[str]:
    options = [word for name in names for word in ("--reward", name)]
    return ["score", "--suite", "sd14", "--weights", str(folder), "--device", "cpu", *options, *rest]


def test_score_with_every_real_reward(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: dict[str, PublishedReward]
) -> None:
    """The CSV and the table hold what the rewards give for the pictures as they are on disk."""
    paths = []
    for name in ("wide", "tall", "thirds"):
        PICTURES[name].save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    assert cli.main([*score_command(weights, NAMES, "--prompt", "a cat", "--csv"), *paths]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == paths and list(rows[0]) == ["image", *NAMES]
    assert cli.main([*score_command(weights, NAMES, "--prompt", "a cat"), *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", *NAMES] and len(lines) == 4
    for name in NAMES:
        truth = loaded[name].score_pictures([PICTURES[n] for n in ("wide", "tall", "thirds")], ["a cat"] * 3, 512)
        assert [float(row[name]) for row in rows] == pytest.approx(truth.tolist(), rel=1e-5, abs=1e-6)
        column = lines[0].split().index(name)
        assert [float(line.split()[column]) for line in lines[1:]] == pytest.approx(truth.tolist(), abs=6e-5)


def test_score_names_a_bad_picture_after_the_others(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "good.png")
    PICTURES["wide"].save(tmp_path / "bad.png")
    raw = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(raw[: len(raw) // 2])
    files = [str(tmp_path / name) for name in ("bad.png", "good.png", "absent.png")]
    assert cli.main([*score_command(weights, ["imagereward"], "--prompt", "a cat", "--csv"), *files]) == 1
    out, err = capsys.readouterr()
    assert [row["image"] for row in csv.DictReader(io.StringIO(out))] == [files[1]]
    assert err.startswith("error: ") and err.count("\n") == 1 and "bad.png" in err and "absent.png" in err


def rgba(image: Image.Image) -> Image.Image:
    return image.convert("RGBA")


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def same(image: Image.Image) -> Image.Image:
    return image


@pytest.mark.parametrize(
    ("file", "convert", "equals"),
    [
        ("rgba.png", rgba, same),
        ("grey.png", lambda image: image.convert("L"), lambda image: image.convert("L").convert("RGB")),
        ("deep.png", deep, lambda image: image.convert("L").convert("RGB")),
        ("cmyk.tiff", lambda image: image.convert("CMYK"), lambda image: image.convert("CMYK").convert("RGB")),
        ("palette.png", lambda image: image.quantize(16), lambda image: image.quantize(16).convert("RGB")),
        ("turned.png", same, lambda image: image.transpose(Image.Transpose.ROTATE_270)),
    ],
)
def test_score_takes_pictures_of_any_mode(
    file: str, convert: Callable[[Image.Image], Image.Image], equals: Callable[[Image.Image], Image.Image],
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: dict[str, PublishedReward],
) -> None:  # fmt: skip
    """Each scores as the RGB picture that a person sees; EXIF's orientation 6 is a quarter turn clockwise."""
    exif = Image.Exif()
    if file == "turned.png":
        exif[0x0112] = 6
    convert(PICTURES["wide"]).save(tmp_path / file, exif=exif)
    names = ["aesthetic", "imagereward", "hpsv2"]
    assert cli.main([*score_command(weights, names, "--prompt", "a cat", "--csv"), str(tmp_path / file)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    for name in names:
        truth = loaded[name].score_pictures([equals(PICTURES["wide"])], ["a cat"], 512).item()
        assert float(row[name]) == pytest.approx(truth, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("min:aesthetic+imagereward", "a cat", "standardised on a run's base samples; score its members by themselves"),
        ("pickscore", "", "--reward pickscore needs a --prompt; without one there are aesthetic"),
        ("imagerward", "a cat", "did you mean 'imagereward'?"),
        ("human", "a cat", "not in the suite 'sd'"),
    ],
)
def test_score_refuses_with_status_2(
    name: str, prompt: str, message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "a.png")
    assert cli.main([*score_command(weights, [name], "--prompt", prompt), str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and err.count("\n") == 1


def test_score_without_the_weights_is_one_line(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main([*score_command(empty, ["imagereward"], "--prompt", "x"), str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "hf download zai-org/ImageReward ImageReward.pt" in err


# --- files beside the weights


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("imagereward", "ImageReward/med_config.json"),
        ("hpsv2", "HPSv2/open_clip_config.json"),
        ("pickscore", f"{PICK}/config.json"),
    ],
)
def test_a_damaged_configuration_is_named(name: str, file: str, weights: Path, tmp_path: Path) -> None:
    """Half a download of the small file is as likely as of the large one."""
    path = spoiled(weights, tmp_path, file)
    path.write_text(path.read_text()[:40])
    assert path.name in complaint(name, tmp_path)


def test_a_configuration_of_another_size_is_a_difference_of_shapes(weights: Path, tmp_path: Path) -> None:
    """``med_config.json`` gives BERT's sizes: with twice the width the file does not fit."""
    path = spoiled(weights, tmp_path, "ImageReward/med_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 128}))
    assert "has shapes text." in complaint("imagereward", tmp_path)


def test_the_head_is_affine_and_has_no_activation(head: RegressionHead) -> None:
    """h(a) + h(b) = h(a + b) + h(0), in LAION's and ImageReward's alike."""
    a, b = torch.randn(2, 8, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(a) + head(b), head(a + b) + head(torch.zeros(8, 768)), rtol=1e-4, atol=1e-3)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == 5
