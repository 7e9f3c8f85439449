"""Rounds of our algorithms and of their bare passes: ours.py CASE BATCH THREADS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from cases import ALPHA, ETA, PROMPTS, RANK, STEPS, Case, red_minus_blue, serve, set_up
from torch import Tensor

from overopt_bench.commands.bench import bare_passes, steady_round
from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.registry import get_reward, get_suite, register_reward
from overopt_bench.training.build import Assembly, assemble
from overopt_bench.types import Reward


@register_reward(suite="mini")
class RedMinusBlue(Reward):
    """Red minus blue."""

    name, differentiable, needs_prompt = "red_minus_blue", True, False

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return red_minus_blue(images)


def build(case: Case, batch: int, runtime: Runtime) -> tuple[Assembly, Reward]:
    """Put the case together; a round is one batch and one optimizer step, in passes of ``batch`` rows as in trl."""
    suite = get_suite("mini")
    if case.grad_steps:
        params: dict[str, Any] = {"batch_size": batch, "truncation": "fixed", "grad_steps": case.grad_steps}
    else:
        params = {"samples_per_epoch": batch, "images_per_prompt": 1, "updates_per_epoch": 1, "skip_last_steps": 0}
    given = {
        "algo": case.algorithm, "proxy": "red_minus_blue", "suite": "mini", "num_steps": STEPS, "eta": ETA,
        "guidance_scale": case.guidance, "lora_rank": RANK, "lora_alpha": ALPHA, "precision": "float32",
        "params": params, "train_prompts": PROMPTS, "budget": 10**9, "gold": ["red_minus_blue"],
    }  # fmt: skip
    proxy = get_reward("red_minus_blue", suite)
    return assemble(resolve(given), suite, {"red_minus_blue": proxy}, runtime, World()), proxy


def main() -> None:
    """Serve rounds of ours: as it is by default, with activations computed again, compiled, and the passes alone."""
    case, batch = set_up()
    plain, proxy = build(case, batch, Runtime(micro_batch=batch))

    @cache  # built when it is first asked for, so that nobody waits for what is left out
    def with_runtime(**runtime: bool) -> Callable[[], Any]:
        return steady_round(build(case, batch, Runtime(micro_batch=batch, **runtime))[0])

    rounds: dict[str, Callable[[], Any]] = {
        "ours": steady_round(plain),
        "bare": bare_passes(plain, proxy, batch, updates=1),
        "compiled": lambda: with_runtime(compile=True)(),
    }
    if case.grad_steps:
        rounds["recomputed"] = lambda: with_runtime(checkpoint=True)()
    serve(rounds)


if __name__ == "__main__":
    main()
