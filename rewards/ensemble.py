"""Ensembles of rewards (Coste et al. 2023, arXiv 2310.02743): ``mean:a+b``, ``min:a+b``, ``uwo:a+b``.

Members are brought to one scale first: each minus its mean and over its deviation on images of the base model. Image
rewards often share a CLIP, so their errors are not independent as the paper's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field
from typing_extensions import Self

from overopt_bench.compute.moments import moments
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.registry import load_reward, register_derived_reward, rewards
from overopt_bench.types import DerivedReward, Resources, Reward, RewardParams

if TYPE_CHECKING:
    from torch import Tensor, nn


class Ensemble(DerivedReward):
    """A combination of standardised members; before ``calibrate`` or ``load_calibration`` it cannot score."""

    needs_base_samples = True

    def __init__(self, loaded: Sequence[Reward]) -> None:
        self.loaded = list(loaded)
        encoders = [reward for reward in self.loaded if reward.feature_dim is not None]
        self._encoder = encoders[0] if encoders else None
        self.feature_dim = self._encoder.feature_dim if self._encoder else None
        self._scale: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(cls, resources: Resources) -> Self:
        return cls([load_reward(name, resources) for name in cls.members])

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], resources: Resources) -> None:
        for name in cls.members:
            rewards.get(name, resources.family).check_prompts(prompts, resources)

    def networks(self) -> list[nn.Module]:
        return [network for reward in self.loaded for network in reward.networks()]

    def calibrate(self, images: Tensor, prompts: Sequence[str]) -> dict[str, float]:
        """Take each member's mean and deviation over two or more base samples ``[B, 3, H, W]``, and return them.

        Raises:
            UserError: where a member gives all of them the same score, or one that is not finite.
        """
        with torch.no_grad():
            scores = self._scores(images, prompts)  # [K, B]
        facts: dict[str, float] = {}
        for name, own in zip(self.members, scores, strict=True):
            if not bool(own.isfinite().all()):
                raise UserError(f"{name} gives a base sample no finite score, so it cannot be part of {self.name}")
            if moments(own)[1] == 0:
                raise UserError(f"{name} gives every base sample the same score, so it cannot be part of {self.name}")
            facts |= {f"{name}/mean": own.mean().item(), f"{name}/std": own.std().item()}
        self.load_calibration(facts)
        return facts

    def load_calibration(self, facts: Mapping[str, float]) -> None:
        """Take each member's mean and deviation as ``calibrate`` returned them.

        Raises:
            UserError: where one is missing or not finite, or a deviation is not positive.
        """
        means, deviations = ([facts.get(f"{name}/{key}", math.nan) for name in self.members] for key in ("mean", "std"))
        for name, mean, std in zip(self.members, means, deviations, strict=True):
            if not (math.isfinite(mean) and 0 < std < math.inf):
                raise UserError(f"{self.name} cannot be standardised with mean {mean} and deviation {std} of {name}")
        self._scale = torch.tensor(means)[:, None], torch.tensor(deviations)[:, None]  # [K, 1]

    def _scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return torch.stack([reward(images, prompts) for reward in self.loaded])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if self._scale is None:
            raise UserError(f"{self.name} is standardised on base samples and has seen none")
        scores = self._scores(images, prompts)  # [K, B]
        mean, std = (part.to(scores) for part in self._scale)
        return self.combine((scores - mean) / std)

    def combine(self, scores: Tensor) -> Tensor:
        """Combine the members' standardised scores ``[K, B]`` into scores ``[B]``."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Give the features of the first member that has an encoder."""
        return super().features(images) if self._encoder is None else self._encoder.features(images)

    def weights_hash(self) -> str | None:
        return "; ".join(
            f"{name} {reward.weights_hash()}" for name, reward in zip(self.members, self.loaded, strict=True)
        )


@register_derived_reward
class Mean(Ensemble):
    """The members' mean."""

    kind = "mean"

    def combine(self, scores: Tensor) -> Tensor:
        return scores.mean(0)


@register_derived_reward
class Minimum(Ensemble):
    """The lowest member's score: worst-case optimisation. Its gradient flows to that member alone."""

    kind = "min"

    def combine(self, scores: Tensor) -> Tensor:
        return scores.amin(0)


class UncertaintyParams(RewardParams):
    """The parameters of ``uwo``."""

    lambda_: float = Field(
        0.5, alias="lambda", ge=0, allow_inf_nan=False,
        description="weight of the variance [ours, for members of deviation 1; Coste et al. find that it matters little]",
    )  # fmt: skip


@register_derived_reward
class UncertaintyWeighted(Ensemble):
    """mean - lambda x variance over the members (their population variance)."""

    kind = "uwo"
    Params = UncertaintyParams
    params: ClassVar[UncertaintyParams]

    def combine(self, scores: Tensor) -> Tensor:
        return scores.mean(0) - self.params.lambda_ * scores.var(0, unbiased=False)
