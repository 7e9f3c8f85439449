"""Gradients against finite differences, in the network and in the transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published_rewards import NAMES, TEXTS, load, noise
from torch import Tensor

from overopt_bench.encoders.preprocessing import differentiable_pixels, letterbox
from overopt_bench.rewards.published import PublishedReward

pytestmark = pytest.mark.usefixtures("one_thread")


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
