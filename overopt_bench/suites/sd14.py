"""``sd14``: Stable Diffusion v1.4. Announced, with an honest account of what is missing; it cannot run yet."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from overopt_bench.errors import UserError
from overopt_bench.registry import register_suite
from overopt_bench.types import Suite, SuiteDefaults

REPOSITORY = "CompVis/stable-diffusion-v1-4"
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/model.safetensors",
    "tokenizer/vocab.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)


@register_suite
class SD14(Suite):
    """Stable Diffusion v1.4 at 512 x 512; sampler and LoRA as in DDPO's and TDPO's released settings."""

    name = "sd14"
    summary = "Stable Diffusion v1.4 at 512 x 512 on a CUDA device; not runnable in this version"
    gold = "imagereward"
    image_size = 512
    defaults = SuiteDefaults(
        num_steps=50,
        guidance_scale=5.0,
        eta=1.0,
        lora_rank=4,
        lora_alpha=4,
        budget=25_600,
        eval_points=11,
        eval_images=64,
    )

    def missing(self) -> str | None:
        """What stands between this machine and the suite: a CUDA device, the weights, or this version itself."""
        from huggingface_hub import try_to_load_from_cache

        if not torch.cuda.is_available():
            return "sd14 needs a CUDA device, and torch finds none here; use --suite mini"
        absent = [f for f in FILES if not isinstance(try_to_load_from_cache(REPOSITORY, f), str)]
        if absent:
            return f"sd14 lacks {', '.join(absent)} in the local Hugging Face cache; get them: hf download {REPOSITORY}"
        return "sd14: the weights are here, but its rewards and prompts are not in this version; use --suite mini"

    def _refuse(self) -> NoReturn:
        raise UserError(str(self.missing()))

    @property
    def prompts(self) -> dict[str, tuple[str, ...]]:
        self._refuse()

    def pipeline(self) -> Any:
        self._refuse()

    def clip_features(self, images: Tensor) -> Tensor:
        self._refuse()

    @property
    def clip_dim(self) -> int:
        self._refuse()

    def weights_hashes(self) -> dict[str, str]:
        self._refuse()
