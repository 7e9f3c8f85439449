"""Speed as ratios: each algorithm beside the bare cost of the network passes that its mathematics needs."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.diffusion.prompts import Conditioning
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite
from overopt_bench.training.build import Assembly, assemble
from overopt_bench.types import Reward, Suite

ROUNDS = 3
PROXY = "aesthetic"
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ddpo": {}, "alignprop": {"truncation": "fixed", "grad_steps": 5}, "tdpo": {}, "tdpo_r": {},
}  # fmt: skip
# a round of 256 samples takes minutes on the real models; the ratio does not depend on their number
SHORT: dict[str, dict[str, Any]] = {
    "ddpo": {"samples_per_epoch": 16}, "alignprop": {"batch_size": 16},
    "tdpo": {"samples_per_epoch": 16, "batch_size": 16}, "tdpo_r": {"samples_per_epoch": 16, "batch_size": 16},
}  # fmt: skip


def bench(
    suite: str = "mini", runtime: Runtime | None = None, *, model: str | None = None, precision: str | None = None
) -> dict[str, Any]:
    """Time one training round of each algorithm and its bare passes in turn, then an evaluation; print the table.

    Returns:
        ``rows``: per algorithm seconds a query, bare seconds a query, and their ratio (medians of three rounds), and
        ``gpu_mb``, the most that was allocated on a GPU; ``evaluation_share``: of a default run of DDPO; ``peak_mb``:
        resident memory of the process.
    """
    runtime = runtime or Runtime()
    world = get_suite(suite, runtime.weights, model)
    proxy = get_reward(PROXY, world)
    precision = precision or ("float32" if runtime.device == "cpu" else world.defaults.precision)
    given = {"proxy": PROXY, "suite": suite, "model": model, "precision": precision, "budget": 10**9}
    rows = {}
    for name, params in ALGORITHMS.items():
        own = params if world.all_rewards else {**params, **SHORT[name]}
        parts = assemble(
            resolve({**given, "algo": name, "params": own}),
            world,
            {PROXY: proxy},
            runtime,
            World(device=runtime.device),
        )
        rows[name] = _compare(parts, _bare(parts, world, proxy))
    config = resolve({**given, "algo": "ddpo", "budget": None})
    scorers = {name: get_reward(name, world) for name in evaluated_rewards(world, config.proxy, config.gold)}
    policy = assemble(config, world, scorers, runtime, World(device=runtime.device)).policy
    evaluator = Evaluator.of_policy(
        policy, world, scorers, config.training_prompts(world), images=config.eval_images, eval_seed=config.eval_seed
    )
    evaluation = _seconds(evaluator, policy.device) * config.eval_points
    training = rows["ddpo"]["seconds_per_query"] * config.budget
    result = {
        "rows": rows, "evaluation_share": evaluation / (evaluation + training), "default_run_seconds": evaluation + training,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(markdown(result))
    return result


def markdown(result: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    on_gpu = any(row["gpu_mb"] for row in result["rows"].values())
    lines = [
        f"| algorithm | s / query | bare passes, s / query | ratio |{' GPU memory, MB |' if on_gpu else ''}",
        f"|---|---|---|---|{'---|' if on_gpu else ''}",
    ]
    for name, row in result["rows"].items():
        memory = f" {row['gpu_mb']:.0f} |" if on_gpu else ""
        lines.append(f"| {name} | {row['seconds_per_query']:.4f} | {row['bare']:.4f} | {row['ratio']:.2f} |{memory}")
    share, minutes = 100 * result["evaluation_share"], result["default_run_seconds"] / 60
    lines += [
        "",
        f"Evaluation: {share:.1f} % of a default DDPO run of {minutes:.1f} minutes;"
        f" peak memory {result['peak_mb']:.0f} MB; {result['threads']} threads.",
    ]
    return "\n".join(lines)


def _bare(parts: Assembly, suite: Suite, proxy: Reward) -> Callable[[], None]:
    """The passes alone, in the algorithm's shapes and micro-batches, on fixed inputs."""
    policy, p, micro = parts.policy, parts.algorithm.params, parts.algorithm.ctx.micro_batch
    words = list(suite.prompts["train"])
    if parts.algorithm.name == "alignprop":
        return lambda: _bare_alignprop(policy, words, proxy, p.batch_size, p.grad_steps, p.checkpoint, micro)
    encode = proxy.features if parts.algorithm.name != "ddpo" else None
    n, trained = p.samples_per_epoch, max(1, policy.num_steps - p.skip_last_steps)
    size = -(-n // p.updates_per_epoch) * trained if encode is None else p.batch_size

    def passes() -> None:
        with torch.no_grad():
            for x, tags in _inputs(policy, words, n, policy.micro_batch):
                for _ in range(policy.num_steps):
                    _unet(policy, x, tags)
                proxy(policy.decode(x), tags)
            for x, _ in _inputs(policy, words, n * trained if encode is not None else 0, micro):
                if encode is not None:
                    encode(policy.decode(x))
        for done in range(0, n * trained, size):
            for x, tags in _inputs(policy, words, min(size, n * trained - done), micro):
                _unet(policy, x, tags).sum().backward()

    return passes


def _bare_alignprop(
    policy: DiffusionPolicy, words: list[str], proxy: Reward, n: int, grad_steps: int, checkpoint: bool, micro: int
) -> None:  # fmt: skip
    for x, tags in _inputs(policy, words, n, micro):
        with torch.no_grad():
            for _ in range(policy.num_steps - grad_steps):
                _unet(policy, x, tags)
        for _ in range(grad_steps):
            x = recompute(_unet, policy, x, tags, use_reentrant=False) if checkpoint else _unet(policy, x, tags)
        proxy(policy.decode(x), tags).sum().backward()


def _inputs(policy: DiffusionPolicy, words: list[str], n: int, micro: int) -> Iterator[tuple[Tensor, list[str]]]:
    for done in range(0, n, micro):
        m = min(micro, n - done)
        yield torch.randn(m, *policy.latent_shape, device=policy.device), (words * m)[:m]


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


def _compare(parts: Assembly, bare: Callable[[], None]) -> dict[str, float]:
    params, device = parts.algorithm.params, parts.policy.device
    queries = params.batch_size if parts.algorithm.name == "alignprop" else params.samples_per_epoch
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    parts.algorithm.step()  # warm up
    gpu_mb = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else 0.0
    bare()
    own, alone = [], []
    for _ in range(ROUNDS):
        own.append(_seconds(parts.algorithm.step, device) / queries)
        alone.append(_seconds(bare, device) / queries)
    mine, floor = statistics.median(own), statistics.median(alone)
    ratio = statistics.median(a / b for a, b in zip(own, alone, strict=True))
    return {"seconds_per_query": mine, "bare": floor, "ratio": ratio, "gpu_mb": gpu_mb}


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
