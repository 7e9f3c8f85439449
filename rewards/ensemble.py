"""Ensembles of rewards (Coste et al. 2023, arXiv 2310.02743): ``mean:a+b``, ``min:a+b``, ``uwo:a+b``.

Members are brought to one scale first: each minus its mean and over its deviation on images of the base model. Image
rewards often share a CLIP, so their errors are not independent as the paper's are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from overopt_bench.compute.moments import moments
from overopt_bench.errors import UserError
from overopt_bench.registry import get_reward, register_derived_reward, rewards
from overopt_bench.types import Reward, Suite

UNCERTAINTY_WEIGHT = 0.5  # lambda of uwo: ours, for members of deviation 1; the paper finds that it matters little


class Ensemble(Reward):
    """What the three share. Before ``calibrate`` or ``load_calibration`` it cannot score."""

    needs_base_samples = True
    members: ClassVar[tuple[str, ...]]

    def __init__(self, loaded: Sequence[Reward]) -> None:
        self.loaded = list(loaded)
        encoders = [reward for reward in self.loaded if reward.feature_dim is not None]
        self._encoder = encoders[0] if encoders else None
        self.feature_dim = self._encoder.feature_dim if self._encoder else None
        self._scale: tuple[Tensor, Tensor] | None = None

    @classmethod
    def load(cls, suite: Suite) -> Ensemble:
        return cls([get_reward(name, suite) for name in cls.members])

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], suite: Suite) -> None:
        for name in cls.members:
            rewards.get(name, suite.family()).check_prompts(prompts, suite)

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
        """Standardised scores ``[K, B]`` of the members to scores ``[B]``."""
        raise NotImplementedError

    def features(self, images: Tensor) -> Tensor:
        """Those of the first member that has an encoder."""
        return super().features(images) if self._encoder is None else self._encoder.features(images)

    def weights_hash(self) -> str | None:
        return "; ".join(
            f"{name} {reward.weights_hash()}" for name, reward in zip(self.members, self.loaded, strict=True)
        )


class Mean(Ensemble):
    """The members' mean."""

    def combine(self, scores: Tensor) -> Tensor:
        return scores.mean(0)


class Minimum(Ensemble):
    """The lowest member's score: worst-case optimisation. Its gradient flows to that member alone."""

    def combine(self, scores: Tensor) -> Tensor:
        return scores.amin(0)


class UncertaintyWeighted(Ensemble):
    """mean - lambda x variance over the members (their population variance)."""

    def combine(self, scores: Tensor) -> Tensor:
        return scores.mean(0) - UNCERTAINTY_WEIGHT * scores.var(0, unbiased=False)


def _derive(kind: str, base: type[Ensemble]) -> None:
    def derived(text: str, suite: str | None) -> type[Reward]:
        members = tuple(part.strip() for part in text.split("+"))
        if len(members) < 2 or len(set(members)) < len(members):
            raise UserError(f"{kind}:{text} needs two or more different rewards, such as {kind}:aesthetic+pickscore")
        if any(":" in member for member in members):
            raise UserError(f"{kind}:{text}: an ensemble's members are plain rewards")
        classes = [rewards.get(name, suite) for name in members]
        facts: dict[str, Any] = {
            "name": f"{kind}:{'+'.join(members)}", "members": members, "__doc__": base.__doc__,
            "__module__": base.__module__,
            "differentiable": all(c.differentiable for c in classes), "needs_prompt": any(c.needs_prompt for c in classes),
        }  # fmt: skip
        return type(base.__name__, (base,), facts)

    register_derived_reward(kind, derived, (base.__doc__ or "").split("\n")[0])


_derive("mean", Mean)
_derive("min", Minimum)
_derive("uwo", UncertaintyWeighted)
