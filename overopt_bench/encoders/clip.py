"""CLIP: how a checkpoint is loaded, and its unit embeddings of images and prompts.

Stable Diffusion's suites share OpenAI's ViT-L/14, the mini suite has a small one of its own. Whoever needs one asks
``Resources.once`` for it, so that rewards, diversity and critics hold the same copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.preprocessing import clip_pixels, differentiable_pixels, to_pil
from overopt_bench.encoders.shared import once_a_batch
from overopt_bench.lazy import torch
from overopt_bench.types import Resources
from overopt_bench.weights import Repo, load_strictly, read_json, read_state, refusing

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor
    from transformers import CLIPModel, CLIPTokenizer

CLIP_L = Repo(
    "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", "MIT (code); the card names research use",
    {"config.json": 4_519, "model.safetensors": 1_710_540_580, "vocab.json": 961_143, "merges.txt": 524_619},
    {"model.safetensors": "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb"},
)  # fmt: skip
MICRO_BATCH = 32  # images that the published networks see at once


def load_clip(folder: Path) -> CLIPModel:
    """Load a frozen float32 ``CLIPModel`` from ``config.json`` and ``model.safetensors``, every tensor accounted for.

    Raises:
        UserError: where the checkpoint is another model's.
    """
    from transformers import CLIPConfig, CLIPModel

    config, path = read_json(folder / "config.json"), folder / "model.safetensors"
    with refusing(folder / "config.json", "CLIP's configuration"):
        clip = CLIPModel(CLIPConfig.from_dict(config))
    # files of 2022 also hold two buffers of consecutive integers, which later versions make themselves
    load_strictly(clip, {k: v.float() for k, v in read_state(path).items() if not k.endswith("position_ids")}, path)
    return clip.eval().requires_grad_(False)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load the tokenizer whose vocabulary is in a folder."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def clip_l(resources: Resources) -> CLIPModel:
    """Give the CLIP ViT-L/14 that all share."""
    return resources.once(load_clip, resources.weights.fetch(CLIP_L))


def clip_l_tokenizer(resources: Resources) -> CLIPTokenizer:
    """Give the tokenizer of OpenAI's models, which PickScore's authors use too."""
    return resources.once(load_tokenizer, resources.weights.fetch(CLIP_L))


def image_embeddings(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """Embed normalised pixels ``[B, 3, side, side]`` as L2-normalised vectors ``[B, D]``."""
    return torch.nn.functional.normalize(
        clip.visual_projection(clip.vision_model(pixel_values=pixels).pooler_output), dim=-1
    )


def text_embeddings(clip: CLIPModel, ids: Tensor) -> Tensor:
    """Embed token ids ``[B, L]`` as L2-normalised vectors ``[B, D]``; attention is causal, so padding does not matter."""
    return torch.nn.functional.normalize(clip.text_projection(clip.text_model(input_ids=ids).pooler_output), dim=-1)


def encoder_pixels(
    images: Tensor,
    name: Hashable,
    official: Callable[[list[Image]], Tensor],
    differentiable: Callable[[Tensor], Tensor],
) -> Iterator[Tensor]:
    """Yield micro-batches of normalised pixels ``[b, 3, side, side]`` of images ``[B, 3, H, W]`` in [0, 1].

    Those without a gradient take the official path through 8-bit pictures, those with one the differentiable path.

    Args:
        images: of any size.
        name: of the official transform; within a batch it is applied once for all that call it so.
        official: the transform of pictures, to pixels on the CPU.
        differentiable: the transform of images.

    Raises:
        FloatingPointError: for NaN or infinity on the official path.
    """
    if images.requires_grad:
        yield from (differentiable(part) for part in images.split(MICRO_BATCH))
    else:  # they wait on the CPU, where they are made
        pixels = once_a_batch(images, name, lambda: official(to_pil(images)))
        yield from (part.to(images.device) for part in pixels.split(MICRO_BATCH))


def clip_features(clip: CLIPModel, images: Tensor) -> Tensor:
    """Embed images ``[B, 3, H, W]`` in [0, 1] of any size as L2-normalised vectors ``[B, D]``."""
    return once_a_batch(images, (clip_features, clip), lambda: _embedded(follow(clip, images), images))


def _embedded(clip: CLIPModel, images: Tensor) -> Tensor:
    side = int(clip.config.vision_config.image_size)
    ways = partial(clip_pixels, side=side), partial(differentiable_pixels, side=side)
    return torch.cat([image_embeddings(clip, pixels) for pixels in encoder_pixels(images, (clip_pixels, side), *ways)])
