"""One update of each kind of algorithm, by however many processes run this file; the main one saves what came out.

``torchrun --nproc_per_node 2 tests/distributed_step.py OUT.pt`` or plain ``python``: the results must agree.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from overopt_bench.assembly import assemble
from overopt_bench.config import resolve
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.runtime import Runtime
from overopt_bench.world import World, join_world

SETTINGS: dict[str, dict[str, Any]] = {
    "ddpo": {"samples_per_epoch": 10, "images_per_prompt": 5, "updates_per_epoch": 1},
    "tdpo_r": {"samples_per_epoch": 10, "images_per_prompt": 5, "batch_size": 10, "reset_period": 1, "critic_dropout": False},
    "alignprop": {"batch_size": 5, "truncation": "fixed", "grad_steps": 2},
}  # fmt: skip


def one_step(algo: str, world: World) -> dict[str, Any]:
    suite, proxy = get_suite("mini"), get_reward("aesthetic", get_suite("mini"))
    config = resolve({"algo": algo, "proxy": "aesthetic", "suite": "mini", "params": SETTINGS[algo]})
    config = config.model_copy(update={"num_steps": 3, "guidance_scale": 2.0, "lora_rank": 2, "lora_alpha": 2})
    parts = assemble(config, suite, {"aesthetic": proxy}, Runtime(micro_batch=3), world)
    policy, budget = parts.policy, parts.budget
    algorithm: Any = parts.algorithm
    optimizer = algorithm.optimizer if algo == "alignprop" else algorithm.updater.optimizer
    gradients: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]))

    optimizer.adamw.register_step_pre_hook(keep)
    metrics = algorithm.step()
    world.check_equal(policy.trainable())
    spent = world.sum(torch.tensor([float(budget.queries), float(policy.nfe)])).tolist()
    stats = algorithm.per_prompt_stats.state_dict() if algo != "alignprop" else {}
    critic = algorithm.critic_events()
    return {"gradient": gradients[0], "metrics": metrics, "spent": spent, "stats": stats, "critic": critic}


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = join_world("cpu")
    results = {algo: one_step(algo, here) for algo in SETTINGS}
    if here.main:
        torch.save({"processes": here.size, **results}, sys.argv[1])
