"""The mini suite's own CLIP, as its rewards, its diversity and its critics read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.encoders.clip import image_embeddings, load_clip, load_tokenizer
from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.shared import once_a_batch
from overopt_bench.lazy import torch
from overopt_bench.types import Resources

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPModel, CLIPTokenizer

CONTEXT = 16  # tokens of a prompt; the longest caption that it was trained on is shorter


def mini_clip_folder(resources: Resources) -> Path:
    """Find the folder of its ``config.json`` and ``model.safetensors``."""
    return resources.asset("clip/config.json").parent


def mini_clip(resources: Resources) -> CLIPModel:
    """Give the copy that all share who only read it."""
    return resources.once(load_clip, mini_clip_folder(resources))


def mini_tokenizer(resources: Resources) -> CLIPTokenizer:
    """Give the tokenizer, which is the base model's too."""
    return resources.once(load_tokenizer, resources.asset("pipeline/tokenizer/tokenizer_config.json").parent)


def mini_features(clip: CLIPModel, images: Tensor) -> Tensor:
    """Embed images ``[B, 3, 32, 32]`` in [0, 1], which it sees in [-1, 1], as L2-normalised vectors ``[B, 64]``."""
    return once_a_batch(images, (mini_features, clip), lambda: image_embeddings(follow(clip, images), images * 2 - 1))


def mini_tokens(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Turn prompts into ids ``[B, 16]``, padded; a longer prompt is cut."""
    out = tokenizer(list(prompts), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt")
    return torch.as_tensor(out.input_ids)
