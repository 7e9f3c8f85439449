"""A suite whose images are random, rewards of each kind, and an algorithm that does nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from overopt_bench.registry import register_algorithm, register_reward, register_suite
from overopt_bench.types import Algorithm, AlgorithmParams, Reward, Suite, SuiteDefaults


@register_suite
class Tiny(Suite):
    name = "tiny"
    summary = "eight by eight pixels"
    gold = "truth"
    image_size = 8
    defaults = SuiteDefaults(
        num_steps=4, guidance_scale=2.0, eta=1.0, lora_rank=2, lora_alpha=2, budget=64, eval_points=3, eval_images=2
    )

    @classmethod
    def settings(cls, algorithm: str) -> Mapping[str, Any]:
        return {"climb": {"epochs": 7}}.get(algorithm, {})

    @property
    def prompts(self) -> dict[str, tuple[str, ...]]:
        return {"train": ("cat", "dog"), "heldout": ("owl",)}

    def missing(self) -> str | None:
        return None

    def pipeline(self) -> Any:
        raise AssertionError("no test needs it")

    def clip_features(self, images: Tensor) -> Tensor:
        return torch.nn.functional.normalize(images.flatten(1), dim=1)

    @property
    def clip_dim(self) -> int:
        return 192

    def weights_hashes(self) -> dict[str, str]:
        return {}


@register_reward(suite="tiny")
class Truth(Reward):
    """Mean brightness."""

    name = "truth"
    differentiable = True

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        assert images.shape[1:] == (3, 8, 8), "the probe must use the suite's own size"
        return images.mean((1, 2, 3))


@register_reward(suite="tiny")
class Darkness(Truth):
    """Minus the mean brightness."""

    name = "darkness"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return -super().__call__(images, prompts)


class _Climber(Algorithm):
    class Params(AlgorithmParams):
        lr: float = Field(1e-3, gt=0, le=1, description="learning rate [made up for the tests]")
        epochs: int = Field(1, ge=1, description="passes over a batch")
        clip: float | None = Field(1.0, description="clip range or none")
        kind: Literal["a", "b"] = Field("a", description="which")

    def step(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return None


@register_algorithm
class Climb(_Climber):
    name = "climb"
    summary = "does nothing"


@register_algorithm
class Slide(_Climber):
    name = "slide"
    summary = "does nothing along a gradient"
    needs_gradient = True
