"""The networks of the mini suite's learned proxies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from overopt_bench.encoders.clip import text_embeddings
from overopt_bench.encoders.mini import mini_features

if TYPE_CHECKING:
    from transformers import CLIPModel


class AestheticHead(nn.Module):
    """A map from embeddings ``[B, 64]`` to scores ``[B]``; it has non-linearities, unlike LAION's head, which is affine.

    ``mean`` and ``std`` ``[64]`` standardise the embedding; they are those of the images that were rated.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int = 64, hidden: int = 64) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.layers = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, 16), nn.GELU(), nn.Linear(16, 1)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        return torch.as_tensor(self.layers((embeddings - self.mean) / self.std).squeeze(1))


class PromptScorer(nn.Module):
    """A model of images and prompts that reads each on its own before it compares them."""

    def text(self, ids: Tensor) -> Tensor:
        """Read ids ``[B, 16]``: ``[B, ...]``."""
        raise NotImplementedError

    def compare(self, images: Tensor, text: Tensor) -> Tensor:
        """Score images ``[B, 3, 32, 32]`` in [0, 1] of prompts as ``text`` gives them: ``[B]``."""
        raise NotImplementedError

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        return self.compare(images, self.text(ids))


class CrossAttentionScorer(PromptScorer):
    """ImageReward's design: text tokens attend to image patches, and an MLP scores the first token.

    Holds its own copy of the CLIP towers, fine-tuned on preferences.
    """

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip
        width = clip.config.vision_config.hidden_size
        self.fuse = nn.TransformerDecoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 1))

    def text(self, ids: Tensor) -> Tensor:
        """Give the end token, which has seen the whole caption, of ids ``[B, 16]``: ``[B, 1, D]``."""
        text = self.clip.text_model(input_ids=ids).last_hidden_state  # [B, 16, D]
        end = self.clip.config.text_config.eos_token_id
        last = (ids == end).int().argmax(1)
        return torch.as_tensor(text[torch.arange(len(ids)), last][:, None])

    def compare(self, images: Tensor, text: Tensor) -> Tensor:
        patches = self.clip.vision_model(pixel_values=images * 2 - 1).last_hidden_state  # [B, 65, D]
        return torch.as_tensor(self.head(self.fuse(text, patches)[:, 0]).squeeze(1))


class SimilarityScorer(PromptScorer):
    """PickScore's and HPSv2's design: the cosine of CLIP's two embeddings, scaled by its temperature."""

    def __init__(self, clip: CLIPModel) -> None:
        super().__init__()
        self.clip = clip

    def text(self, ids: Tensor) -> Tensor:
        """Embed ids ``[B, 16]``: ``[B, 64]``."""
        return text_embeddings(self.clip, ids)

    def compare(self, images: Tensor, text: Tensor) -> Tensor:
        cosine = (mini_features(self.clip, images) * text).sum(1)
        return torch.as_tensor(self.clip.logit_scale.exp() * cosine)
