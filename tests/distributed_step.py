"""One update of each kind of algorithm, by however many processes run this file; the main one saves what came out.

``torchrun --nproc_per_node 2 tests/distributed_step.py OUT.pt`` or plain ``python``: the results must agree.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from overopt_bench.compute.processes import World, join_world
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.plugins import load_plugin
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.training.build import assemble

README = Path(__file__).parent.parent / "README.md"
# by a name of its own: the algorithm and its settings; of_one leaves a second process without a share
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpo": ("ddpo", {"samples_per_epoch": 10, "images_per_prompt": 5, "updates_per_epoch": 1}),
    "tdpo_r": ("tdpo_r", {"samples_per_epoch": 10, "images_per_prompt": 5, "batch_size": 10, "reset_period": 1, "critic_dropout": False}),
    "alignprop": ("alignprop", {"batch_size": 5, "truncation": "fixed", "grad_steps": 2}),
    "grpo": ("grpo", {"samples_per_epoch": 10, "images_per_prompt": 5, "updates_per_epoch": 1, "window": 2, "ratio": "guard"}),
    "nft": ("nft", {"samples_per_epoch": 10, "images_per_prompt": 5, "updates_per_epoch": 1}),
    "rwr": ("rwr", {"samples": 5}),
    # two updates: before the first one the policy is the base model, from which it has no KL
    "ddpo with kl": ("ddpo", {"samples_per_epoch": 10, "images_per_prompt": 5, "updates_per_epoch": 2}),
    "tdpo_r of one": ("tdpo_r", {"samples_per_epoch": 1, "images_per_prompt": 1, "reset_period": 1, "critic_dropout": False}),
    "alignprop of one": ("alignprop", {"batch_size": 1, "truncation": "fixed", "grad_steps": 2}),
}  # fmt: skip
MITIGATION = {"ddpo with kl": ["kl:beta=10"]}


def load_readme_plugin() -> None:
    """Register the algorithm that the README shows."""
    code = re.search(r"```python\n# rwr.py\n(.*?)```", README.read_text(), re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rwr.py"
        file.write_text(code[1])
        load_plugin(file)


def one_step(name: str, world: World) -> dict[str, Any]:
    algo, params = SETTINGS[name]
    suite, proxy = get_suite("mini"), get_reward("aesthetic", get_suite("mini"))
    config = resolve(
        {"algo": algo, "proxy": "aesthetic", "suite": "mini", "params": params, "mitigation": MITIGATION.get(name)}
    )
    config = config.model_copy(update={"num_steps": 3, "guidance_scale": 2.0, "lora_rank": 2, "lora_alpha": 2})
    parts = assemble(config, suite, {"aesthetic": proxy}, Runtime(micro_batch=3), world)
    policy, budget = parts.policy, parts.budget
    algorithm: Any = parts.algorithm
    optimizer = algorithm.updater.optimizer if hasattr(algorithm, "updater") else algorithm.optimizer
    optimizer.max_grad_norm = float("inf")  # a clipped gradient would hide its scale
    gradients: list[torch.Tensor] = []

    def keep(*_: Any) -> None:
        gradients.append(torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None]))

    optimizer.adamw.register_step_pre_hook(keep)
    metrics = algorithm.step() | algorithm.ctx.mitigations.take_metrics(world)
    world.check_equal(policy.trainable())
    spent = world.sum(torch.tensor([float(budget.queries), float(policy.nfe)])).tolist()
    stats = algorithm.per_prompt_stats.state_dict() if hasattr(algorithm, "per_prompt_stats") else {}
    critic = algorithm.critic_events()
    weights = torch.cat([p.detach().flatten() for p in policy.trainable()])
    return {
        "gradient": gradients[0],
        "weights": weights,
        "metrics": metrics,
        "spent": spent,
        "stats": stats,
        "critic": critic,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = join_world("cpu")
    load_readme_plugin()
    results = {name: one_step(name, here) for name in SETTINGS}
    if here.main:
        torch.save({"processes": here.size, **results}, sys.argv[1])
