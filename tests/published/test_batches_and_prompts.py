"""Batches, sizes and prompts of any kind, and images that are not finite."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from published_rewards import LIMITS, NAMES, TEXTS, ask, load, noise

from overopt_bench.encoders.preprocessing import to_pil
from overopt_bench.rewards.clip import ClipReward
from overopt_bench.rewards.published import PublishedReward

pytestmark = pytest.mark.usefixtures("one_thread")


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
            for module in ("encoders.clip", "rewards.clip", "rewards.published"):
                patch.setattr(f"overopt_bench.{module}.MICRO_BATCH", n)
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
    reward = loaded["clipscore"]
    assert isinstance(reward, ClipReward)
    tokens = reward.tokens(["red " * 100, "a"])
    assert tokens.shape == (2, 77) and tokens[0, -1] == 49407 and tokens[0, 0] == 49406
