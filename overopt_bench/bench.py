"""Speed as ratios: each algorithm beside the bare cost of the network passes that its mathematics needs."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from overopt_bench.assembly import assemble
from overopt_bench.conditioning import Conditioning
from overopt_bench.config import RunConfig, resolve
from overopt_bench.evaluate import Evaluator
from overopt_bench.policy import DiffusionPolicy
from overopt_bench.registry import get_reward, get_suite, rewards
from overopt_bench.runtime import Runtime
from overopt_bench.types import Algorithm, Reward, Suite
from overopt_bench.world import World

ROUNDS = 3
PROXY = "aesthetic"
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ddpo": {}, "alignprop": {"truncation": "fixed", "grad_steps": 5}, "tdpo": {}, "tdpo_r": {},
}  # fmt: skip


def bench(
    suite: str = "mini", runtime: Runtime | None = None, *, model: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Time one training round of each algorithm and its bare passes in turn, then an evaluation; print the table.

    Returns:
        ``rows``: per algorithm seconds a query, bare seconds a query, and their ratio (medians of three rounds);
        ``evaluation_share``: of a default run of DDPO; ``peak_mb``: resident memory of the process.
    """
    runtime = runtime or Runtime()
    world = get_suite(suite, runtime.weights, model)
    proxy = get_reward(PROXY, world)
    precision = precision or ("float32" if runtime.device == "cpu" else world.defaults.precision)
    given = {"proxy": PROXY, "suite": suite, "model": model, "precision": precision}
    rows = {}
    for name, params in ALGORITHMS.items():
        config = resolve({**given, "algo": name, "params": params})
        algorithm, policy = _build(config, world, {PROXY: proxy}, runtime)
        rows[name] = _compare(algorithm, _bare(algorithm, policy, world, proxy))
    config = resolve({**given, "algo": "ddpo"})
    names = rewards.names(world.family()) if world.all_rewards else [config.proxy, *config.gold]
    scorers = {name: get_reward(name, world) for name in names}
    evaluator = Evaluator(world, _build(config, world, scorers, runtime)[1], scorers, config)
    evaluation = _seconds(evaluator) * config.eval_points
    training = rows["ddpo"]["seconds_per_query"] * config.budget
    result = {
        "rows": rows, "evaluation_share": evaluation / (evaluation + training), "default_run_seconds": evaluation + training,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(markdown(result))
    return result


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    lines = ["| algorithm | s / query | bare passes, s / query | ratio |", "|---|---|---|---|"]
    for name, row in result["rows"].items():
        lines.append(f"| {name} | {row['seconds_per_query']:.4f} | {row['bare']:.4f} | {row['ratio']:.2f} |")
    share, minutes = 100 * result["evaluation_share"], result["default_run_seconds"] / 60
    lines += [
        "",
        f"Evaluation: {share:.1f} % of a default DDPO run of {minutes:.1f} minutes;"
        f" peak memory {result['peak_mb']:.0f} MB; {result['threads']} threads.",
    ]
    return "\n".join(lines)


def _build(
    config: RunConfig, suite: Suite, scorers: Mapping[str, Reward], runtime: Runtime
) -> tuple[Algorithm, DiffusionPolicy]:
    unlimited = config.model_copy(update={"budget": 10**9})
    parts = assemble(unlimited, suite, scorers, runtime, World(device=runtime.device))
    return parts.algorithm, parts.policy


def _bare(algorithm: Algorithm, policy: DiffusionPolicy, suite: Suite, proxy: Reward) -> Callable[[], None]:
    """The passes alone, in the algorithm's shapes and batches, on fixed inputs."""
    p, steps = algorithm.params, policy.num_steps
    if algorithm.name == "alignprop":
        return lambda: _bare_alignprop(policy, suite, proxy, p.batch_size, p.grad_steps)
    encode = proxy.features if algorithm.name != "ddpo" else None
    n, trained = p.samples_per_epoch, max(1, steps - p.skip_last_steps)
    if algorithm.name == "ddpo":
        size = -(-n // p.updates_per_epoch) * trained
    else:
        size = p.batch_size

    def passes() -> None:
        x, words = torch.randn(n, *policy.latent_shape, device=policy.device), (list(suite.prompts["train"]) * n)[:n]
        with torch.no_grad():
            for _ in range(steps):
                _unet(policy, x, words)
            proxy(policy.decode(x), words)
            if encode is not None:
                for _ in range(trained):
                    encode(policy.decode(x))
        for left in range(0, n * trained, size):
            m = min(size, n * trained - left)
            many, tags = x[torch.arange(m) % n], (words * (m // n + 1))[:m]
            _unet(policy, many, tags).sum().backward()

    return passes


def _bare_alignprop(policy: DiffusionPolicy, suite: Suite, proxy: Reward, n: int, grad_steps: int) -> None:
    x, words = torch.randn(n, *policy.latent_shape, device=policy.device), (list(suite.prompts["train"]) * n)[:n]
    with torch.no_grad():
        for _ in range(policy.num_steps - grad_steps):
            _unet(policy, x, words)
    for _ in range(grad_steps):
        x = _unet(policy, x, words)
    proxy(policy.decode(x), words).sum().backward()


def _unet(policy: DiffusionPolicy, x: Tensor, words: list[str]) -> Tensor:
    """One batch through the U-Net itself: N latents, or 2 N with guidance, and nothing else."""
    n, context, batch = len(x), policy.encode(words), x
    if policy.guidance_scale != 1:
        context, batch = Conditioning.cat([policy.encode.unconditional(n), context]), torch.cat([x, x])
    t = policy.timesteps[torch.zeros(len(batch), dtype=torch.long)]
    with torch.autocast(policy.device.type, policy.dtype, enabled=policy.dtype != torch.float32):
        out = policy.unet(
            batch.to(memory_format=torch.channels_last), t, context.embeds, added_cond_kwargs=context.added,
            return_dict=False,
        )[0]  # fmt: skip
    return torch.as_tensor(out[:n].float())


def _compare(algorithm: Algorithm, bare: Callable[[], None]) -> dict[str, float]:
    queries = algorithm.params.batch_size if algorithm.name == "alignprop" else algorithm.params.samples_per_epoch
    algorithm.step()  # warm up
    bare()
    own, alone = [], []
    for _ in range(ROUNDS):
        own.append(_seconds(algorithm.step) / queries)
        alone.append(_seconds(bare) / queries)
    mine, floor = statistics.median(own), statistics.median(alone)
    return {
        "seconds_per_query": mine,
        "bare": floor,
        "ratio": statistics.median(a / b for a, b in zip(own, alone, strict=True)),
    }


def _seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
