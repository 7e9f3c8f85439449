"""Rewards against truth from outside: DDPO's JPEG sizes, finite differences, and the judge's known order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import features

from overopt_bench.registry import get_reward, get_suite, rewards
from overopt_bench.rewards.jpeg import jpeg_kilobytes
from overopt_bench.rewards.judge import Judge

GOLDEN = Path(__file__).parent / "golden"


def test_jpeg_sizes_are_ddpos() -> None:
    golden = np.load(GOLDEN / "jpeg.npz")
    same_encoder = features.version("libjpeg_turbo") in str(golden["versions"])
    for k in range(8):
        image = torch.from_numpy(golden[f"image_{k}"]).permute(2, 0, 1)[None].float() / 255
        size = jpeg_kilobytes(image).item() * 1000
        assert size == pytest.approx(float(golden["size_bytes"][k]), rel=1e-6 if same_encoder else 0.01)


@pytest.mark.parametrize("name", rewards.names("mini"))
def test_scores_are_one_per_image_whatever_the_batch(name: str) -> None:
    suite = get_suite("mini")
    reward = get_reward(name, suite)
    prompts = list(suite.prompts["train"][:5])
    pipe = suite.pipeline()
    pipe.set_progress_bar_config(disable=True)
    g = torch.Generator().manual_seed(0)
    images = pipe(prompts, num_inference_steps=4, height=32, width=32, output_type="pt", generator=g).images
    scores = reward(images, prompts)
    assert scores.shape == (5,) and scores.dtype == torch.float32 and bool(scores.isfinite().all())
    alone = torch.cat([reward(images[k : k + 1], prompts[k : k + 1]) for k in range(5)])
    torch.testing.assert_close(scores, alone, rtol=1e-4, atol=1e-4)
    other = list(suite.prompts["train"][5:10])
    assert bool((reward(images, other) != scores).any()) == reward.needs_prompt


@pytest.mark.parametrize("name", [n for n in rewards.names("mini") if rewards.get(n, "mini").differentiable])
def test_weights_and_tokens_follow_the_images_to_their_device(name: str) -> None:
    """On the "meta" device, which like a GPU refuses to mix with the CPU, but is everywhere."""
    suite = get_suite("mini")
    reward = get_reward(name, suite)
    images = torch.empty(2, 3, 32, 32, device="meta")
    scores = reward(images, list(suite.prompts["train"][:2]))
    assert scores.device == images.device and scores.shape == (2,)
    if reward.feature_dim is not None:
        assert reward.features(images).shape == (2, reward.feature_dim)
    assert suite.clip_features(images).device == images.device


@pytest.mark.parametrize("name", [n for n in rewards.names("mini") if rewards.get(n, "mini").differentiable])
def test_gradients_reach_the_pixels(name: str) -> None:
    """Against central differences along a random direction, in float64."""
    suite = get_suite("mini")
    reward = get_reward(name, suite)
    for holder in ("model", "judge", "clip"):
        if isinstance(module := getattr(reward, holder, None), torch.nn.Module):
            module.double()
    g = torch.Generator().manual_seed(1)
    images = (0.2 + 0.6 * torch.rand(1, 3, 32, 32, generator=g)).double().requires_grad_(True)
    direction = torch.randn(images.shape, generator=g).double()
    prompts = list(suite.prompts["train"][:1])
    (gradient,) = torch.autograd.grad(reward(images, prompts).sum(), images)
    h = 1e-5
    with torch.no_grad():
        difference = (reward(images + h * direction, prompts) - reward(images - h * direction, prompts)).sum() / (2 * h)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-7)
    assert gradient.abs().max() > 0


def test_rewards_without_gradient_say_so() -> None:
    reward = get_reward("jpeg_compressibility", get_suite("mini"))
    assert not reward.differentiable
    assert not reward(torch.rand(1, 3, 32, 32, requires_grad=True), ["x"]).requires_grad


def test_judge_finds_the_longest_name_in_a_prompt() -> None:
    judge = Judge(["bear", "polar bear", "cat"], width=8)
    assert judge.name_of("3d polar bear") == 1
    assert judge.name_of("bear") == 0
    with pytest.raises(ValueError, match="bearcat"):
        judge.name_of("bearcat")
