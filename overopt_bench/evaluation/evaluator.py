"""What is known of a policy at one point of the budget: all rewards, path KL, diversity, on fixed prompts and noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from overopt_bench.config import RunConfig
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.evaluation.scoring import checked, shared_scores
from overopt_bench.prompts.tidy import overlap
from overopt_bench.seeding import stable_seed
from overopt_bench.types import Reward, Suite

IMAGES_PER_PROMPT = 4  # pairs within a prompt give the diversity
COLUMNS = 16
CALIBRATION_IMAGES = 128


@dataclass(frozen=True)
class Split:
    """The images that are drawn for one prompt split: B prompts and each image's number within its prompt."""

    name: str
    prompts: tuple[str, ...]
    index: tuple[int, ...]
    noise: Tensor  # [T+1, B, C, h, w]


def image_noise(eval_seed: int, prompt: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """The noise of one image: depends on nothing but (evaluation seed, prompt, number)."""
    return torch.randn(shape, generator=Generator().manual_seed(stable_seed("eval", eval_seed, prompt, index)))


def make_split(
    name: str, prompts: Sequence[str], images: int, eval_seed: int, shape: tuple[int, ...],
    per_prompt: int = IMAGES_PER_PROMPT,
) -> Split:  # fmt: skip
    """At most ``images`` images over the prompts, at least ``per_prompt`` of each where there is room.

    A prompt that comes twice counts once: its second images would be the first ones again.
    """
    chosen = list(dict.fromkeys(prompts))[: max(1, images // per_prompt)]
    pairs = [(chosen[k % len(chosen)], k // len(chosen)) for k in range(images)]
    pairs.sort(key=lambda pair: chosen.index(pair[0]))
    noise = torch.stack([image_noise(eval_seed, prompt, index, shape) for prompt, index in pairs], 1)
    return Split(name, tuple(p for p, _ in pairs), tuple(i for _, i in pairs), noise)


def diversity(features: Tensor, prompts: Sequence[str]) -> float | None:
    """Mean pairwise cosine distance of unit features ``[B, D]`` among images of one prompt, averaged over prompts."""
    values = []
    for prompt in dict.fromkeys(prompts):
        own = features[[k for k, p in enumerate(prompts) if p == prompt]]
        n = len(own)
        if n > 1:
            total = (own @ own.T).sum() - (own * own).sum()
            values.append(1 - (total / (n * (n - 1))).item())
    return sum(values) / len(values) if values else None


def summary(key: str, values: Tensor) -> dict[str, float]:
    """Mean, standard error and count of scores ``[B]`` under ``key``."""
    spread = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return {f"{key}/mean": values.mean().item(), f"{key}/stderr": spread, f"{key}/count": len(values)}


class Evaluator:
    """Evaluates policies of one run, always on the same prompts and noise.

    The train split gets ``eval_images`` images, each held-out split half as many, so that evaluation stays a
    small part of a run. Path KL is measured on the train split and on the first held-out one.
    """

    def __init__(self, suite: Suite, policy: DiffusionPolicy, rewards: Mapping[str, Reward], config: RunConfig) -> None:
        self.suite, self.policy, self.rewards = suite, policy, rewards
        self.train_prompts, self.eval_seed = config.training_prompts(suite), config.eval_seed
        shape = (config.num_steps + 1, *policy.latent_shape)
        splits = [("train", self.train_prompts, config.eval_images)]
        splits += [(s, p, config.eval_images // 2) for s, p in suite.prompts.items() if s.startswith("heldout")]
        self.splits = [make_split(name, prompts, n, config.eval_seed, shape) for name, prompts, n in splits if n]
        self.with_kl = {split.name for split in self.splits[:2]}
        # held-out prompts that are trained on are recorded as such: their scores are of no unseen prompts
        self.trained_on = {
            split.name: overlap(self.train_prompts, dict.fromkeys(split.prompts)) for split in self.splits[1:]
        }

    def base_samples(self, count: int = CALIBRATION_IMAGES) -> tuple[Tensor, tuple[str, ...]]:
        """``count`` images of the base model ``[count, 3, H, W]`` over all training prompts, and their prompts.

        Rewards are standardised on them. Their noise is that of no evaluation, and the same whenever they are drawn.
        """
        shape = self.splits[0].noise[:, 0].shape
        split = make_split(
            "calibration", self.train_prompts, count, stable_seed("calibration", self.eval_seed), shape, 1
        )
        nfe = self.policy.nfe
        with self.policy.base():
            images = self.policy.sample(split.noise, split.prompts)[0].images
        self.policy.nfe = nfe
        return images, split.prompts

    @torch.no_grad()
    def __call__(self) -> tuple[dict[str, Any], list[dict[str, Any]], Tensor]:
        """The "eval" row, the "scores" rows (one a split), and all images ``[N, 3, H, W]`` in row order.

        Raises:
            FloatingPointError: where a reward gives something that is not finite.
        """
        row: dict[str, Any] = {}
        details: list[dict[str, Any]] = []
        pictures: list[Tensor] = []
        nfe = self.policy.nfe
        for split in self.splits:
            trajectory, kl = self.policy.sample(split.noise, split.prompts, with_kl=split.name in self.with_kl)
            images = trajectory.images
            scores = {
                name: checked(shared_scores(reward, images, split.prompts, self.policy.world), name, split.prompts)
                for name, reward in self.rewards.items()
            }
            for name, values in scores.items():
                row |= summary(f"{split.name}/{name}", values)
            if kl is not None:
                row |= summary(f"{split.name}/path_kl", kl.sum(1))
                row |= summary(f"{split.name}/path_kl_without_last_two", kl[:, :-2].sum(1))
                row[f"{split.name}/sqrt_kl"] = kl.sum(1).mean().clamp(min=0).sqrt().item()
            row[f"{split.name}/diversity"] = diversity(self.suite.clip_features(images), split.prompts)
            details.append({
                "split": split.name, "prompts": split.prompts, "index": split.index,
                **({"trained_on": seen} if (seen := self.trained_on.get(split.name)) else {}),
                "scores": {name: [round(v, 6) for v in values.tolist()] for name, values in scores.items()},
                "path_kl": None if kl is None else [round(v, 6) for v in kl.sum(1).tolist()],
                "first_cell": sum(len(p) for p in pictures), "columns": COLUMNS, "cell": images.shape[-1],
            })  # fmt: skip
            pictures.append(images.cpu())
        self.policy.nfe = nfe  # evaluation is free
        return row, details, torch.cat(pictures)
