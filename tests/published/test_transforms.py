"""Transforms of pictures against the Hub's and torchvision's, and which of the two a reward takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from published_rewards import BLACK, NAMES, PICTURES, SIZES, TEXTS, ask, noise, picture, table_of
from torch import Tensor

from overopt_bench.encoders.preprocessing import MEAN, STD, clip_pixels, differentiable_pixels, letterbox, to_tensor
from overopt_bench.rewards.published import PublishedReward

pytestmark = pytest.mark.usefixtures("one_thread")


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
    limit = 1e-5 if name.startswith("hps") else 0.05
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
