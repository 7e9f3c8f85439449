"""Stable Diffusion with the published rewards: 1.4, 1.5, XL, and any pipeline of these kinds."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from overopt_bench.compute.cards import cards
from overopt_bench.diffusion.pipelines import latent_side, refuse_unsupported
from overopt_bench.errors import UserError
from overopt_bench.prompts import read_prompts
from overopt_bench.registry import register_suite
from overopt_bench.suites.architectures import ARCHITECTURES
from overopt_bench.suites.loading import hub_patterns, load_pipeline, loaded_files, read_configs, read_index
from overopt_bench.types import Architecture, Suite, SuiteDefaults
from overopt_bench.weights import Repo, digest, read_json

if TYPE_CHECKING:
    from torch import Tensor

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
    """A Stable Diffusion with DDPO's animals as prompts, the published rewards, and CLIP ViT-L/14 for diversity.

    ``repo`` is the base model's repository; None where a user's ``--model`` says it.
    """

    gold = "imagereward"
    defaults = PUBLISHED
    repo: ClassVar[Repo | None] = None
    kind: ClassVar[str] = "sd1"

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
        from overopt_bench.encoders.clip import CLIP_L

        return [*([self.repo] if self.repo else []), CLIP_L]

    def missing(self) -> str | None:
        if not cards():
            return f"{self.name} on a CPU takes weeks, and torch finds no CUDA device here"
        weights = self.resources.weights
        for repo in self.repos():
            if absent := weights.absent(repo):
                return (
                    f"{self.name} lacks {', '.join(absent)} of {repo.id} here; get it: {repo.command(weights.folder)}"
                )
        return None

    @cached_property
    def folder(self) -> Path:
        """The folder of the base model's pipeline.

        Raises:
            UserError: where it is missing, or is no Stable Diffusion that can be trained.
        """
        folder = self._find()
        index = read_index(folder)
        refuse_unsupported(index["_class_name"], read_configs(folder, index))
        loaded_files(folder)
        return folder

    def pipeline_folder(self) -> Path:
        return self.folder

    def _find(self) -> Path:
        assert self.repo is not None
        return self.resources.weights.fetch(self.repo)

    def pipeline(self) -> Any:
        return load_pipeline(self.folder)

    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.kind]

    def clip_features(self, images: Tensor) -> Tensor:
        from overopt_bench.encoders.clip import clip_features, clip_l

        return clip_features(clip_l(self.resources), images)

    @property
    def clip_dim(self) -> int:
        from overopt_bench.encoders.clip import clip_l

        return int(clip_l(self.resources).config.projection_dim)

    def weights_hashes(self) -> dict[str, str]:
        return {str(f.relative_to(self.folder)): digest(f) for f in loaded_files(self.folder)}


@register_suite
class SD14(StableDiffusionSuite):
    """Stable Diffusion 1.4, the model of DDPO's and TDPO's experiments."""

    name = "sd14"
    default_rank = 2
    summary = "Stable Diffusion v1.4 at 512 x 512 with the published rewards, the paper's experiment"
    image_size = 512
    repo = Repo(
        "CompVis/stable-diffusion-v1-4", "133a221b8aa7292a167afc5127cb63fb5005638b", "CreativeML OpenRAIL-M", V1_FILES
    )


@register_suite
class SD15(StableDiffusionSuite):
    """Stable Diffusion 1.5, the model of AlignProp's and Flow-GRPO's smaller experiments."""

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
    """Stable Diffusion XL, with two text encoders and added conditions; the VAE stays in float32."""

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
    """The model that ``--model`` names: a folder, or ``owner/name`` on the Hub, with ``@REVISION`` where one is meant."""

    name = "sd"
    summary = "any Stable Diffusion 1, 2 or XL pipeline, a folder or a Hub id: --model PATH_OR_ID[@REVISION]"

    NO_MODEL: ClassVar[str] = "the suite sd needs --model, a folder or a Hub id of a Stable Diffusion pipeline"

    @classmethod
    def takes_model(cls) -> bool:
        return True

    def missing(self) -> str | None:
        return self.NO_MODEL if self.model is None else super().missing()

    def _find(self) -> Path:
        if self.model is None:
            raise UserError(self.NO_MODEL)
        path = Path(os.path.expanduser(self.model))
        if path.is_dir():  # whatever its name, also one that a Hub id could have
            return path
        if path.is_file():
            raise UserError(f"--model {self.model} is a file; what is needed is the folder of a diffusers pipeline")
        if name := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\S+))?", self.model):
            return fetch_pipeline(name[1], name[2])
        raise UserError(
            f"--model {self.model}: neither a folder nor a Hub id such as owner/name or owner/name@REVISION"
        )

    def architecture(self) -> Architecture:
        """Read the user's model's own; its text encoders are left out, since they are little beside the rest."""
        unet, vae = (read_json(self.folder / part / "config.json") for part in ("unet", "vae"))
        return Architecture(unet, vae, 0)

    @cached_property
    def image_size(self) -> int:
        """Pixels of a side of what the pipeline draws: its U-Net's size times the VAE's factor."""
        configs = self.architecture()
        halvings = len(configs.vae.get("block_out_channels", (64,))) - 1
        return int(latent_side(configs.unet) * 2**halvings)


def fetch_pipeline(model: str, revision: str | None) -> Path:
    """Fetch a Hub repository's pipeline into the Hub's cache, without what is not read, and give its folder.

    Raises:
        UserError: where neither the Hub nor its cache has it, or it has no safetensors.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(model, revision=revision)
    except Exception:  # offline mode, no network, no such repository: an exception for each, and the cache may have it
        names = []
    patterns = hub_patterns(names, model)
    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, local_files_only=not names))
    except Exception as error:
        raise UserError(
            f"--model {model}: no such folder, and the Hub gave none ({type(error).__name__}); where there is a"
            f" network: hf download {model}{f' --revision {revision}' if revision else ''}"
        ) from None
