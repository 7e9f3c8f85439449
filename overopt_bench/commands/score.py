"""Rewards on pictures from disk, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.registry import get_reward, rewards
from overopt_bench.types import Suite

if TYPE_CHECKING:
    import pandas as pd

BATCH = 64


def score(
    names: Sequence[str], prompt: str, paths: Sequence[Path], suite: Suite, device: str
) -> tuple[pd.DataFrame, list[str]]:
    """Every reward of every picture.

    Returns:
        A row per picture (``image`` and a column per reward), and a line for each file that could not be read.

    Raises:
        UserError: where a reward does not exist, needs a prompt and has none, or cannot judge the prompt.
    """
    classes = {name: rewards.get(name, suite.family()) for name in dict.fromkeys(names)}
    if unprompted := [name for name, cls in classes.items() if cls.needs_prompt and not prompt.strip()]:
        free = [name for name in rewards.names(suite.family()) if not rewards.get(name, suite.family()).needs_prompt]
        raise UserError(f"--reward {unprompted[0]} needs a --prompt; without one there are {', '.join(free) or 'none'}")
    if standardised := [name for name, cls in classes.items() if cls.needs_base_samples]:
        raise UserError(
            f"--reward {standardised[0]} is standardised on a run's base samples; score its members by themselves"
        )
    for cls in classes.values():
        if cls.needs_prompt:
            cls.check_prompts([prompt], suite.resources)
    import pandas as pd

    from overopt_bench.pictures import read_picture

    pictures, good, complaints = [], [], []
    for path in paths:
        try:
            pictures.append(read_picture(path))
            good.append(str(path))
        except UserError as error:
            complaints.append(str(error))
    table: dict[str, list[str] | list[float]] = {"image": good}
    for name in classes:
        reward, values = get_reward(name, suite), []
        for k in range(0, len(good), BATCH):
            part = pictures[k : k + BATCH]
            with torch.no_grad():
                values += reward.score_pictures(part, [prompt] * len(part), suite.image_size, device).tolist()
        table[name] = values
    return pd.DataFrame(table), complaints
