"""Scores against truth from outside: golden scores of LAION's head (NumPy, float64), and ``transformers``' own CLIP in float64
under the formula of PickScore's page. The authors' packages are in ``test_against_official_*.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from published_rewards import (
    CLIP,
    FILES,
    NAMES,
    PICK,
    PICTURES,
    TEXTS,
    ask,
    hub_pixels,
    load,
    noise,
    picture,
    table_of,
    transformers_clip,
)
from torch import Tensor, nn

from overopt_bench.encoders.preprocessing import to_pil, to_tensor
from overopt_bench.registry import get_suite, rewards
from overopt_bench.rewards.clip import AESTHETIC_HEAD
from overopt_bench.rewards.heads import RegressionHead
from overopt_bench.rewards.published import PublishedReward

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_six_are_all_the_suite_has_besides_jpeg() -> None:
    assert set(rewards.names("sd")) == {*NAMES, "jpeg_compressibility", "jpeg_incompressibility"}


def test_aesthetic_head_is_the_published_one(head: RegressionHead, golden: dict[str, Tensor]) -> None:
    """Against NumPy in float64: two ulps of 5 in float32, for any order of summation. Not normalised it is another score."""
    ours = head(F.normalize(golden["vectors"]))
    assert (ours - golden["scores"]).abs().max() <= 1e-6
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


def test_the_head_is_affine_and_has_no_activation(head: RegressionHead) -> None:
    """h(a) + h(b) = h(a + b) + h(0), in LAION's and ImageReward's alike."""
    a, b = torch.randn(2, 8, 768, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(a) + head(b), head(a + b) + head(torch.zeros(8, 768)), rtol=1e-4, atol=1e-3)
    assert sum(isinstance(module, nn.Linear) for module in head.modules()) == 5


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


def test_hashes_are_those_of_the_files(weights: Path, loaded: dict[str, PublishedReward]) -> None:
    from hashlib import sha256

    for name, reward in loaded.items():
        expected = sha256((weights / FILES[name]).read_bytes()).hexdigest()
        if name == "aesthetic":
            expected = f"{sha256(AESTHETIC_HEAD.read_bytes()).hexdigest()} on {expected}"
        assert reward.weights_hash() == expected
