"""Which images an evaluation draws: prompts, and noise that depends on nothing but seed, prompt and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from overopt_bench.seeding import stable_seed
from overopt_bench.types import Suite

IMAGES_PER_PROMPT = 4  # pairs within a prompt give the diversity


@dataclass(frozen=True)
class Split:
    """The images that are drawn for one prompt split.

    Attributes:
        name: of the split.
        prompts: of the B images.
        index: each image's number within its prompt.
        noise: ``[S, B, C, h, w]``; see ``Sampler.noise_shape``.
    """

    name: str
    prompts: tuple[str, ...]
    index: tuple[int, ...]
    noise: Tensor


def evaluation_prompts(suite: Suite, training_prompts: Sequence[str]) -> dict[str, Sequence[str]]:
    """Give the prompts that a run on a suite is evaluated on, by split: those of its training, then all held-out ones."""
    held_out = {name: prompts for name, prompts in suite.prompts.items() if name.startswith("heldout")}
    return {"train": training_prompts, **held_out}


def image_noise(eval_seed: int, prompt: str, index: int, shape: tuple[int, ...]) -> Tensor:
    """Draw the noise of one image, which depends on nothing but (evaluation seed, prompt, number)."""
    return torch.randn(shape, generator=Generator().manual_seed(stable_seed("eval", eval_seed, prompt, index)))


def make_split(
    name: str, prompts: Sequence[str], images: int, eval_seed: int, shape: tuple[int, ...],
    per_prompt: int = IMAGES_PER_PROMPT,
) -> Split:  # fmt: skip
    """Plan at most ``images`` images over the prompts, at least ``per_prompt`` of each where there is room.

    A prompt that comes twice counts once: its second images would be the first ones again.
    """
    chosen = list(dict.fromkeys(prompts))[: max(1, images // per_prompt)]
    pairs = [(chosen[k % len(chosen)], k // len(chosen)) for k in range(images)]
    pairs.sort(key=lambda pair: chosen.index(pair[0]))
    noise = torch.stack([image_noise(eval_seed, prompt, index, shape) for prompt, index in pairs], 1)
    return Split(name, tuple(p for p, _ in pairs), tuple(i for _, i in pairs), noise)
