"""The rewards that are one ``CLIPModel``: LAION's aesthetic predictor, PickScore and CLIPScore."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Self

from overopt_bench.encoders.clip import (
    CLIP_L,
    MICRO_BATCH,
    clip_features,
    clip_l,
    clip_l_tokenizer,
    image_embeddings,
    load_clip,
    text_embeddings,
)
from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.shared import once_a_batch, once_a_run
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.types import Resources
from overopt_bench.weights import Repo, digest, load_strictly, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPModel, CLIPTokenizer

    from overopt_bench.rewards.heads import AestheticPredictor

PICKSCORE = Repo(
    "yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", "MIT (code); none stated for the weights",
    {"config.json": 4_500, "model.safetensors": 3_944_517_836},
)  # fmt: skip
AESTHETIC_HEAD = Path(str(files("overopt_bench.rewards") / "assets" / "laion_aesthetic_v2_head.safetensors"))


class ClipReward(PublishedReward):
    """A reward whose network is CLIP: its image tower, and its text tower where the prompt counts."""

    def __init__(self, model: nn.Module, clip: CLIPModel, tokenizer: CLIPTokenizer, weights_digest: str) -> None:
        super().__init__(model, weights_digest)
        self.clip, self.tokenizer = clip, tokenizer
        self.side = int(clip.config.vision_config.image_size)
        self.feature_dim = int(clip.config.projection_dim)

    def features(self, images: Tensor) -> Tensor:
        # under the name of the suite's own features, which are the same where the network is
        return once_a_batch(images, (clip_features, self.clip), lambda: super(ClipReward, self).features(images))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return image_embeddings(self.clip, pixels)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into ids ``[B, L]``, L at most 77; a long prompt is cut and keeps its end token."""
        limit = int(self.clip.config.text_config.max_position_embeddings)
        whole = self.tokenizer(list(prompts), verbose=False).input_ids  # its own warning speaks of errors to come
        self.warn_cut(prompts, [len(ids) > limit for ids in whole], limit)
        ids = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=limit, return_tensors="pt"
        ).input_ids
        return torch.as_tensor(ids)

    def score_features(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score unit features ``[B, D]``: ``[B]``."""
        raise NotImplementedError

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        follow(self.model, images)
        parts = zip(self.features(images).split(MICRO_BATCH), range(0, len(images), MICRO_BATCH), strict=True)
        return torch.cat([self.score_features(part, prompts[k : k + MICRO_BATCH]) for part, k in parts])

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.score_features(self.encode_pixels(pixels), prompts)

    def cosine(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        """Compute the cosine of unit features ``[B, D]`` and prompts, ``[B]``."""

        def embed() -> Tensor:
            return text_embeddings(self.clip, self.tokens(prompts).to(features.device))

        return (features * once_a_run(prompts, (self.clip, features.device), embed)).sum(1)


@register_reward(suite="sd")
class ClipScore(ClipReward):
    """100 times the cosine of CLIP ViT-L/14's embeddings; not clamped at 0, where a clamp would end the gradient."""

    name = "clipscore"
    repos = (CLIP_L,)

    @classmethod
    def load(cls, resources: Resources) -> Self:
        clip = clip_l(resources)
        return cls(clip, clip, clip_l_tokenizer(resources), digest(resources.weights.path(CLIP_L, "model.safetensors")))

    def score_features(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return 100 * self.cosine(features, prompts)


@register_reward(suite="sd")
class PickScore(ClipReward):
    """PickScore v1 (Kirstain et al. 2023): exp(logit_scale) times the cosine of a fine-tuned CLIP ViT-H/14, near 21.

    TDPO's code leaves the factor out (near 0.21). Pixels and tokens are those of OpenAI's processor, as there; the
    authors' own gives the same.
    """

    name = "pickscore"
    repos = (PICKSCORE, CLIP_L)

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.weights.fetch(PICKSCORE)
        clip = resources.once(load_clip, path)
        return cls(clip, clip, clip_l_tokenizer(resources), digest(path / "model.safetensors"))

    def score_features(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.as_tensor(self.clip.logit_scale.exp() * self.cosine(features, prompts))


@register_reward(suite="sd")
class Aesthetic(ClipReward):
    """LAION's aesthetic predictor v2 (sac+logos+ava1, linear MSE) on CLIP ViT-L/14; every score lies in [-12.8, 23.3]."""

    name = "aesthetic"
    repos = (CLIP_L,)
    needs_prompt = False
    model: AestheticPredictor

    @classmethod
    def load(cls, resources: Resources) -> Self:
        from overopt_bench.rewards.heads import AestheticPredictor, RegressionHead

        state = read_state(AESTHETIC_HEAD)
        head = RegressionHead(state["layers.0.weight"].shape[1])
        load_strictly(head, state, AESTHETIC_HEAD)
        clip, encoder = clip_l(resources), digest(resources.weights.path(CLIP_L, "model.safetensors"))
        hashes = f"{digest(AESTHETIC_HEAD)} on {encoder}"
        return cls(AestheticPredictor(clip, head), clip, clip_l_tokenizer(resources), hashes)

    def score_features(self, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.as_tensor(self.model.head(features))
