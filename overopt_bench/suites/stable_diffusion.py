"""Stable Diffusion with the published rewards: 1.4, 1.5, XL, and any pipeline of these kinds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from overopt_bench.errors import UserError
from overopt_bench.prompts import read_prompts
from overopt_bench.registry import register_suite
from overopt_bench.rewards.clip import CLIP_L, ClipScore, load_clip
from overopt_bench.suites.architectures import ARCHITECTURES
from overopt_bench.suites.loading import no_progress_bars
from overopt_bench.types import Architecture, Suite, SuiteDefaults
from overopt_bench.weights import Repo, Weights, digest, read_json

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
WITHOUT_SAFETY_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
PUBLISHED = SuiteDefaults(  # DDPO's and TDPO's released settings
    num_steps=50, guidance_scale=5.0, eta=1.0, lora_rank=4, lora_alpha=4, budget=25_600, eval_points=11, eval_images=64,
    precision="float16",
)  # fmt: skip
V1_FILES = {
    "model_index.json": 541, "scheduler/scheduler_config.json": 308,
    "text_encoder/config.json": 617, "text_encoder/model.safetensors": 492_265_874,
    "tokenizer/vocab.json": 1_059_962, "tokenizer/merges.txt": 524_619, "tokenizer/tokenizer_config.json": 806,
    "tokenizer/special_tokens_map.json": 472,
    "unet/config.json": 743, "unet/diffusion_pytorch_model.safetensors": 3_438_167_540,
    "vae/config.json": 551, "vae/diffusion_pytorch_model.safetensors": 334_643_276,
}  # fmt: skip
XL_FILES = {
    **{k: v for k, v in V1_FILES.items() if not k.endswith("safetensors")},
    "text_encoder/model.safetensors": 492_265_168,
    "text_encoder_2/config.json": 575, "text_encoder_2/model.safetensors": 2_778_702_264,
    "tokenizer_2/vocab.json": 1_059_962, "tokenizer_2/merges.txt": 524_619, "tokenizer_2/tokenizer_config.json": 725,
    "tokenizer_2/special_tokens_map.json": 460,
    "unet/diffusion_pytorch_model.safetensors": 10_270_077_736, "vae/diffusion_pytorch_model.safetensors": 334_643_268,
}  # fmt: skip


class StableDiffusionSuite(Suite):
    """What all of them share: DDPO's animals as prompts, the published rewards, CLIP ViT-L/14 for diversity.

    ``repo`` is the base model's repository; None where a user's ``--model`` says it.
    """

    gold = "imagereward"
    defaults = PUBLISHED
    repo: ClassVar[Repo | None] = None
    kind: ClassVar[str] = "sd1"

    def __init__(self, weights: Path | None = None, model: str | None = None) -> None:
        super().__init__(weights, model)
        self.weights = Weights(weights)

    @classmethod
    def family(cls) -> str:
        return "sd"

    @property
    def prompts(self) -> dict[str, tuple[str, ...]]:
        return {
            "train": read_prompts("simple_animals"),
            "imagenet_animals": read_prompts("imagenet_animals"),
            "heldout": read_prompts("heldout_animals"),
        }

    def repos(self) -> list[Repo]:
        return [*([self.repo] if self.repo else []), CLIP_L]

    def missing(self) -> str | None:
        if not torch.cuda.is_available():
            return f"{self.name} on a CPU takes weeks, and torch finds no CUDA device here"
        for repo in self.repos():
            if absent := self.weights.absent(repo):
                return f"{self.name} lacks {', '.join(absent)} of {repo.id} here; get it: {repo.command(self.weights.folder)}"
        return None

    @cached_property
    def folder(self) -> Path:
        """The folder of the base model's pipeline.

        Raises:
            UserError: where it is missing, or is no Stable Diffusion.
        """
        assert self.repo is not None
        return self.weights.fetch(self.repo)

    def pipeline(self) -> Any:
        import diffusers

        kind = pipeline_kind(self.folder)
        with no_progress_bars():
            try:
                return getattr(diffusers, kind).from_pretrained(
                    self.folder, use_safetensors=True, local_files_only=True,
                    **({} if kind == KINDS[1] else WITHOUT_SAFETY_CHECKER),
                )  # fmt: skip
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                raise UserError(f"{self.folder} does not load as a {kind}: {error}") from None

    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.kind]

    @cached_property
    def clip(self) -> Any:
        """CLIP ViT-L/14, shared by all that only read it."""
        return load_clip(self.weights.fetch(CLIP_L))

    @cached_property
    def clip_tokenizer(self) -> Any:
        """Its tokenizer."""
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(self.weights.fetch(CLIP_L))

    def clip_features(self, images: Tensor) -> Tensor:
        return self._encoder.features(images)

    @property
    def clip_dim(self) -> int:
        return int(self.clip.config.projection_dim)

    @cached_property
    def _encoder(self) -> ClipScore:
        """What embeds images the way that the rewards on this CLIP do."""
        return ClipScore(self.clip, self.clip, self.clip_tokenizer, None)

    def weights_hashes(self) -> dict[str, str]:
        found = sorted(self.folder.glob("*/*.safetensors"))
        used = [f for f in found if f.name in ("model.safetensors", "diffusion_pytorch_model.safetensors")]
        return {str(f.relative_to(self.folder)): digest(f) for f in used}


def pipeline_kind(folder: Path) -> str:
    """The class that ``model_index.json`` names, where it is one of ``KINDS``.

    Raises:
        UserError: for anything else.
    """
    try:
        index: Mapping[str, Any] = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        kind = str(index["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no diffusers pipeline: model_index.json cannot be read ({type(error).__name__})"
        ) from None
    if kind not in KINDS:
        raise UserError(f"{folder} holds a {kind}; what can be trained are {' and '.join(KINDS)}")
    return kind


@register_suite
class SD14(StableDiffusionSuite):
    """The model of DDPO's and TDPO's experiments."""

    name = "sd14"
    summary = "Stable Diffusion v1.4 at 512 x 512 with the published rewards, the paper's experiment"
    image_size = 512
    repo = Repo(
        "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b", "CreativeML OpenRAIL-M", V1_FILES
    )


@register_suite
class SD15(StableDiffusionSuite):
    """The model of AlignProp's and Flow-GRPO's smaller experiments."""

    name = "sd15"
    summary = "Stable Diffusion v1.5 at 512 x 512 with the published rewards"
    image_size = 512
    repo = Repo(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        "CreativeML OpenRAIL-M", V1_FILES,
        {
            "unet/diffusion_pytorch_model.safetensors": "19da7aaa4b880e59d56843f1fcb4dd9b599c28a1d9d9af7c1143057c8ffae9f1",
            "vae/diffusion_pytorch_model.safetensors": "a2b5134f4dbc140d9c11f11cba3233099e00af40f262f136c691fb7d38d2194c",
            "text_encoder/model.safetensors": "d008943c017f0092921106440254dbbe00b6a285f7883ec8ba160c3faad88334",
        },
    )  # fmt: skip


@register_suite
class SDXL(StableDiffusionSuite):
    """Two text encoders and added conditions; the VAE stays in float32."""

    name = "sdxl"
    summary = "Stable Diffusion XL 1.0 at 1024 x 1024 with the published rewards"
    image_size = 1024
    kind = "sdxl"
    repo = Repo(
        "stabilityai/stable-diffusion-xl-base-1.0", "462165984030d82259a11f4367a4eed129e94a7b", "CreativeML OpenRAIL++-M",
        XL_FILES,
    )  # fmt: skip


@register_suite
class AnyStableDiffusion(StableDiffusionSuite):
    """``--model PATH_OR_ID``: a folder, or ``owner/name`` on the Hub, with ``@REVISION`` where one is meant."""

    name = "sd"
    summary = "any Stable Diffusion 1, 2 or XL pipeline, a folder or a Hub id: --model PATH_OR_ID[@REVISION]"

    NO_MODEL: ClassVar[str] = "the suite sd needs --model, a folder or a Hub id of a Stable Diffusion pipeline"

    @classmethod
    def takes_model(cls) -> bool:
        return True

    def missing(self) -> str | None:
        return self.NO_MODEL if self.model is None else super().missing()

    @cached_property
    def folder(self) -> Path:
        if self.model is None:
            raise UserError(self.NO_MODEL)
        model, _, revision = self.model.partition("@")
        if Path(model).expanduser().is_dir():
            path = Path(model).expanduser()
        elif re.fullmatch(r"[\w.-]+/[\w.-]+", model):
            from huggingface_hub import snapshot_download

            try:
                patterns = ["*.json", "*.txt", "*/model.safetensors", "*/diffusion_pytorch_model.safetensors"]
                path = Path(snapshot_download(model, revision=revision or None, allow_patterns=patterns))
            except Exception as error:  # offline mode, no network, no such repository: an exception for each
                raise UserError(
                    f"--model {model}: no such folder, and the Hub gave none ({type(error).__name__}); where there is a"
                    f" network: hf download {model}{f' --revision {revision}' if revision else ''}"
                ) from None
        else:
            raise UserError(f"--model {model}: neither a folder nor a Hub id such as owner/name")
        pipeline_kind(path)
        return path

    def architecture(self) -> Architecture:
        """Its own, but for the text encoders, whose size is little beside the rest."""
        unet, vae = (read_json(self.folder / part / "config.json") for part in ("unet", "vae"))
        return Architecture(unet, vae, 0)

    @cached_property
    def image_size(self) -> int:  # type: ignore[override]
        """What the pipeline draws: its U-Net's size times the VAE's factor."""
        configs = self.architecture()
        return int(configs.unet["sample_size"] * 2 ** (len(configs.vae["block_out_channels"]) - 1))
