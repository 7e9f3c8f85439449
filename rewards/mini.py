"""The mini suite's learned proxies: small models of their namesakes' designs, fitted to few noisy labels of ``human``.

``aesthetic`` follows LAION's predictor (an MLP on the frozen CLIP embedding), ``imagereward`` ImageReward
(image-text cross-attention and an MLP, pairwise preferences), ``pickscore`` and ``hpsv2`` their namesakes
(CLIP fine-tuned on preferences), ``clipscore`` the plain similarity of the suite's CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from overopt_bench.encoders.clip import load_clip, text_embeddings
from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.mini import mini_clip, mini_clip_folder, mini_features, mini_tokenizer, mini_tokens
from overopt_bench.encoders.shared import once_a_run
from overopt_bench.errors import UserError
from overopt_bench.registry import register_reward
from overopt_bench.types import Resources, Reward
from overopt_bench.weights import digest, read_state

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer


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


class MiniProxy(Reward):
    """A learned proxy with its weights, an image encoder and the suite's tokenizer.

    Files hold what was fitted; what was left frozen is the suite's own CLIP, which is not stored again.
    """

    differentiable = True
    scorer: ClassVar[type[nn.Module]]

    def __init__(self, model: nn.Module, clip: CLIPModel, tokenizer: CLIPTokenizer, digest: str) -> None:
        self.model, self.clip, self.tokenizer, self._digest = model, clip, tokenizer, digest
        self.feature_dim = int(clip.config.projection_dim)

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.asset(f"rewards/{cls.name}.safetensors")
        own_clip = cls.scorer is not AestheticHead
        clip = load_clip(mini_clip_folder(resources)) if own_clip else mini_clip(resources)
        model = cls.scorer(clip) if own_clip else cls.scorer()
        fitted = {k: v.float() for k, v in read_state(path).items()}
        absent = model.load_state_dict(fitted, strict=False).missing_keys
        if lost := [key for key in absent if not key.startswith("clip.")]:
            raise UserError(f"{path} lacks {', '.join(lost)}; reinstall, or make it again with the recipe")
        return cls(model.eval().requires_grad_(False), clip, mini_tokenizer(resources), digest(path))

    def features(self, images: Tensor) -> Tensor:
        return mini_features(self.clip, images)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        model = self._scorer(images)
        return model.compare(images, self._text(model, prompts, images.device))

    def _scorer(self, images: Tensor) -> PromptScorer:
        assert isinstance(self.model, PromptScorer)
        return follow(self.model, images)

    def _text(self, model: PromptScorer, prompts: Sequence[str], device: torch.device) -> Tensor:
        return once_a_run(prompts, (model, device), lambda: model.text(self.tokens(prompts).to(device)))

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into ids ``[B, 16]``."""
        return mini_tokens(self.tokenizer, prompts)

    def weights_hash(self) -> str | None:
        return self._digest


@register_reward(suite="mini")
class Aesthetic(MiniProxy):
    """An MLP on the suite's frozen CLIP embedding, fitted to ratings."""

    name = "aesthetic"
    needs_prompt = False
    scorer = AestheticHead

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.as_tensor(follow(self.model, images)(self.features(images)))


@register_reward(suite="mini")
class ImageReward(MiniProxy):
    """Image-text cross-attention and an MLP, fitted to pairwise preferences."""

    name = "imagereward"
    scorer = CrossAttentionScorer


@register_reward(suite="mini")
class PickScore(MiniProxy):
    """The suite's CLIP fine-tuned on preferences between two base samples of one prompt."""

    name = "pickscore"
    scorer = SimilarityScorer


@register_reward(suite="mini")
class HPSv2(MiniProxy):
    """The suite's CLIP fine-tuned on preferences that mix base samples, reconstructions and worse samplers."""

    name = "hpsv2"
    scorer = SimilarityScorer


@register_reward(suite="mini")
class ClipScore(MiniProxy):
    """The plain cosine similarity of the suite's CLIP, times 100."""

    name = "clipscore"
    scorer = SimilarityScorer

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.asset("clip/model.safetensors")
        clip = mini_clip(resources)
        return cls(SimilarityScorer(clip), clip, mini_tokenizer(resources), digest(path))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        image = self.features(images)
        return 100 * (image * self._text(self._scorer(images), prompts, images.device)).sum(1)
