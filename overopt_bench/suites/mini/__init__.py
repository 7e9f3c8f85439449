"""The embedded suite: a real StableDiffusionPipeline of small parts, with a true reward that is known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.errors import UserError
from overopt_bench.registry import register_suite
from overopt_bench.suites.loading import no_progress_bars, read_settings
from overopt_bench.types import Resources, Suite, SuiteDefaults
from overopt_bench.weights import Weights, digest

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = Path(__file__).parent / "weights"
SETTINGS = Path(__file__).parent / "settings.yaml"
REMEDY = "reinstall, or make it: python -m overopt_bench.suites.mini.recipe"


@register_suite
class MiniSuite(Suite):
    """Emoji at 32 x 32, trained from scratch; ``human`` is the truth. Runs on two CPU cores."""

    name = "mini"
    summary = "emoji at 32 x 32 on a small StableDiffusionPipeline; ships with the package, true reward known"
    gold = "human"
    image_size = 32
    small = True
    default_rank = 1
    all_rewards = True
    knows_truth = True
    defaults = SuiteDefaults(
        num_steps=5,
        guidance_scale=1.0,
        eta=1.0,
        lora_rank=8,
        lora_alpha=8,
        budget=4096,
        eval_points=9,
        eval_images=64,
    )

    def __init__(self, weights: Path | None = None, model: str | None = None) -> None:
        super().__init__(weights, model)
        self.resources = Resources(self.family(), Weights(weights), weights or WEIGHTS, REMEDY)

    @classmethod
    def settings(cls, algorithm: str) -> Mapping[str, Any]:
        return read_settings(SETTINGS).get(algorithm, {})

    def asset(self, name: str) -> Path:
        """Find a file of the suite.

        Raises:
            UserError: where it is missing.
        """
        return self.resources.asset(name)

    def missing(self) -> str | None:
        try:
            self.asset("prompts.json"), self.asset("pipeline/model_index.json")
        except UserError as error:
            return str(error)
        return None

    @cached_property
    def _listing(self) -> dict[str, Any]:
        return dict(json.loads(self.asset("prompts.json").read_text(encoding="utf-8")))

    @property
    def prompts(self) -> dict[str, tuple[str, ...]]:
        splits = {**self._listing["splits"], "tuning": self._listing["tuning"]}
        return {split: tuple(names) for split, names in splits.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that the base model was trained on."""
        return tuple(self._listing["names"])

    def pipeline(self) -> Any:
        from diffusers import StableDiffusionPipeline

        folder = self.asset("pipeline/model_index.json").parent
        with no_progress_bars():
            pipeline = StableDiffusionPipeline.from_pretrained(
                folder, safety_checker=None, requires_safety_checker=False, local_files_only=True
            )
        return pipeline

    def fresh_clip(self) -> Any:
        """Load a new copy of the suite's ``CLIPModel``, in float32 and evaluation mode."""
        from overopt_bench.encoders.clip import load_clip
        from overopt_bench.encoders.mini import mini_clip_folder

        return load_clip(mini_clip_folder(self.resources))

    @property
    def clip(self) -> Any:
        """The suite's ``CLIPModel``, shared by all that only read it."""
        from overopt_bench.encoders.mini import mini_clip

        return mini_clip(self.resources)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Turn prompts into ids ``[B, 16]``."""
        from overopt_bench.encoders.mini import mini_tokenizer, mini_tokens

        return mini_tokens(mini_tokenizer(self.resources), prompts)

    def clip_features(self, images: Tensor) -> Tensor:
        from overopt_bench.encoders.mini import mini_features

        return mini_features(self.clip, images)

    @property
    def clip_dim(self) -> int:
        return int(self.clip.config.projection_dim)

    def weights_hashes(self) -> dict[str, str]:
        folder = self.asset("pipeline/model_index.json").parents[1]
        files = sorted(folder.glob("pipeline/**/*.safetensors"))
        return {str(f.relative_to(folder)): digest(f) for f in files}
