"""What is timed, equal for both sides, and how a side is asked for its rounds. Imports nothing that only one side has."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEPS = 5
ETA = 1.0
RANK = ALPHA = 4  # of trl's LoRA, which has no option for them
PROMPTS = ("fox face", "butterfly", "tiger", "lobster")


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        algorithm: registered name.
        guidance: of the sampler; 1 is none.
        grad_steps: last steps of the sampler that keep their gradient, for backpropagation through it; 0 is none.
    """

    algorithm: str
    guidance: float
    grad_steps: int = 0


CASES: Mapping[str, Case] = {
    "DDPO, no guidance": Case("ddpo", 1.0),
    "DDPO, guidance 5": Case("ddpo", 5.0),
    f"AlignProp, guidance 5, all {STEPS} steps": Case("alignprop", 5.0, STEPS),
    "AlignProp, guidance 5, last 2 steps": Case("alignprop", 5.0, 2),
}


def red_minus_blue(images: Tensor) -> Tensor:
    """The reward: ``[B]`` of images ``[B, 3, H, W]`` in [0, 1]; differentiable, and next to nothing to compute."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def serve(rounds: Mapping[str, Callable[[], Any]]) -> None:
    """Run one round for each line of the input that names one, and answer with its CPU and wall seconds as JSON.

    The first line that is written says which names there are.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be taken for an answer
    print(json.dumps(list(rounds)), file=answers, flush=True)
    for line in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        rounds[line.strip()]()
        seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        print(json.dumps(seconds), file=answers, flush=True)


def set_up() -> tuple[Case, int]:
    """Read a worker's arguments, CASE BATCH THREADS, and set torch's threads; give the case and the batch."""
    name, batch, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    return CASES[name], int(batch)
