"""A reward that takes SLOW_SECONDS for each batch of training but the first; those of evaluation are smaller, and quick."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from torch import Tensor

from overopt_bench.registry import register_reward
from overopt_bench.types import Reward


@register_reward
class Slow(Reward):
    """How red the image is, told by a slow judge."""

    name, needs_prompt = "slow", False
    batches = 0

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if len(images) > 4:
            time.sleep(float(os.environ.get("SLOW_SECONDS", "0")) if self.batches else 0)
            self.batches += 1
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
