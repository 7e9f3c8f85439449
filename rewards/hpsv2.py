"""HPS v2 and v2.1 (Wu et al. 2023, arXiv 2306.09341) on open_clip's ViT-H-14, with their own transform."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import Self

from overopt_bench.encoders.preprocessing import letterbox, to_tensor
from overopt_bench.encoders.shared import once_a_run
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.types import Resources
from overopt_bench.weights import Repo, digest, load_strictly, read_json, read_state, refusing

if TYPE_CHECKING:
    from open_clip.model import CLIP
    from open_clip.tokenizer import SimpleTokenizer
    from PIL import Image
    from torch import Tensor

REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
HPS_V2 = Repo(
    "xswu/HPSv2", REVISION, "Apache-2.0", {"HPS_v2_compressed.pt": 1_972_484_501},
    {"HPS_v2_compressed.pt": "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1"},
)  # fmt: skip
HPS_V2_1 = Repo(
    "xswu/HPSv2", REVISION, "Apache-2.0", {"HPS_v2.1_compressed.pt": 1_972_490_005},
    {"HPS_v2.1_compressed.pt": "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837"},
)  # fmt: skip


def architecture(folder: Path) -> dict[str, Any]:
    """Give open_clip's configuration: ``open_clip_config.json`` beside the weights where there is one, else ViT-H-14's."""
    import open_clip

    own = folder / "open_clip_config.json"
    if not own.exists():
        return dict(open_clip.get_model_config("ViT-H-14"))
    with refusing(own, "open_clip's configuration"):
        return dict(read_json(own)["model_cfg"])


@register_reward(suite="sd")
class HPSv2(PublishedReward):
    """HPS v2: the cosine of image and prompt under a fine-tuned CLIP ViT-H/14, near 0.27 (tables show it times 100).

    Its own transform letterboxes: the longer side becomes 224 and black is added; bicubic on floats, antialiased as an
    installation of today does (v2's published numbers probably without). It is differentiable itself: the
    two ways in differ by the rounding to 8 bits alone.
    """

    name = "hpsv2"
    repos: ClassVar[tuple[Repo, ...]] = (HPS_V2,)
    model: CLIP

    def __init__(self, model: CLIP, tokenizer: SimpleTokenizer, weights_digest: str) -> None:
        super().__init__(model, weights_digest)
        self.tokenizer = tokenizer
        self.side = int(model.visual.image_size[0])
        self.feature_dim = int(model.text_projection.shape[1])

    @classmethod
    def load(cls, resources: Resources) -> Self:
        from open_clip.model import CLIP
        from open_clip.tokenizer import SimpleTokenizer

        (repo,) = cls.repos
        (file,) = repo.files
        path = resources.weights.path(repo, file)
        config = architecture(path.parent)
        with refusing(path.parent, "open_clip's configuration"):
            model = CLIP(**config)
        load_strictly(model, {k: v.float() for k, v in read_state(path).items()}, path)
        return cls(model, SimpleTokenizer(context_length=config["text_cfg"]["context_length"]), digest(path))

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        text = once_a_run(prompts, (self.model, pixels.device), lambda: self._text(prompts, pixels.device))
        return (self.encode_pixels(pixels) * text).sum(1)

    def _text(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        limit = int(self.tokenizer.context_length)
        self.warn_cut(prompts, [len(self.tokenizer.encode(p)) + 2 > limit for p in prompts], limit)
        return torch.nn.functional.normalize(self.model.encode_text(self.tokenizer(list(prompts)).to(device)), dim=-1)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.model.encode_image(pixels), dim=-1)

    def official_pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return torch.cat([letterbox(to_tensor([picture]), self.side) for picture in pictures])

    def transform(self) -> Hashable:
        return (letterbox, self.side)

    def differentiable_pixels(self, images: Tensor) -> Tensor:
        return letterbox(images, self.side)


@register_reward(suite="sd")
class HPSv21(HPSv2):
    """HPS v2.1: the same model with other weights; its scores cannot be compared with v2's."""

    name = "hpsv2_1"
    repos = (HPS_V2_1,)
