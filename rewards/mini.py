"""The mini suite's learned proxies: small models of their namesakes' designs, fitted to few noisy labels of ``human``.

``aesthetic`` follows LAION's predictor (an MLP on the frozen CLIP embedding), ``imagereward`` ImageReward
(image-text cross-attention and an MLP, pairwise preferences), ``pickscore`` and ``hpsv2`` their namesakes
(CLIP fine-tuned on preferences), ``clipscore`` the plain similarity of the suite's CLIP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from typing_extensions import Self

from overopt_bench.encoders.clip import load_clip
from overopt_bench.encoders.devices import follow
from overopt_bench.encoders.mini import mini_clip, mini_clip_folder, mini_features, mini_tokenizer, mini_tokens
from overopt_bench.encoders.shared import once_a_run
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.types import Resources, Reward
from overopt_bench.weights import digest, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import CLIPModel, CLIPTokenizer

    from overopt_bench.rewards.scorers import PromptScorer


class MiniProxy(Reward):
    """A learned proxy with its weights, an image encoder and the suite's tokenizer.

    Files hold what was fitted; what was left frozen is the suite's own CLIP, which is not stored again.
    """

    differentiable = True
    own_clip = True  # a copy that was fitted too, not the one that the suite's rewards share

    def __init__(self, model: nn.Module, clip: CLIPModel, tokenizer: CLIPTokenizer, digest: str) -> None:
        self.model, self.clip, self.tokenizer, self._digest = model, clip, tokenizer, digest
        self.feature_dim = int(clip.config.projection_dim)

    @classmethod
    def scorer(cls, clip: CLIPModel) -> nn.Module:
        """Make the network on a CLIP, before the fitted weights are read into it."""
        from overopt_bench.rewards.scorers import SimilarityScorer

        return SimilarityScorer(clip)

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.asset(f"rewards/{cls.name}.safetensors")
        clip = load_clip(mini_clip_folder(resources)) if cls.own_clip else mini_clip(resources)
        model = cls.scorer(clip)
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
        return follow(cast("PromptScorer", self.model), images)

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
    own_clip = False

    @classmethod
    def scorer(cls, clip: CLIPModel) -> nn.Module:
        from overopt_bench.rewards.scorers import AestheticHead

        return AestheticHead()

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.as_tensor(follow(self.model, images)(self.features(images)))


@register_reward(suite="mini")
class ImageReward(MiniProxy):
    """Image-text cross-attention and an MLP, fitted to pairwise preferences."""

    name = "imagereward"

    @classmethod
    def scorer(cls, clip: CLIPModel) -> nn.Module:
        from overopt_bench.rewards.scorers import CrossAttentionScorer

        return CrossAttentionScorer(clip)


@register_reward(suite="mini")
class PickScore(MiniProxy):
    """The suite's CLIP fine-tuned on preferences between two base samples of one prompt."""

    name = "pickscore"


@register_reward(suite="mini")
class HPSv2(MiniProxy):
    """The suite's CLIP fine-tuned on preferences that mix base samples, reconstructions and worse samplers."""

    name = "hpsv2"


@register_reward(suite="mini")
class ClipScore(MiniProxy):
    """The plain cosine similarity of the suite's CLIP, times 100."""

    name = "clipscore"

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.asset("clip/model.safetensors")
        clip = mini_clip(resources)
        return cls(cls.scorer(clip), clip, mini_tokenizer(resources), digest(path))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        image = self.features(images)
        return 100 * (image * self._text(self._scorer(images), prompts, images.device)).sum(1)
