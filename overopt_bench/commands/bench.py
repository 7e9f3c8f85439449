"""Speed as ratios: each algorithm beside the bare cost of the network passes that its mathematics needs."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from overopt_bench.commands.settings import Options
from overopt_bench.compute.processes import World
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.diffusion.prompts import Conditioning
from overopt_bench.errors import UserError
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.registry import algorithms, evaluated_rewards, get_reward, get_suite
from overopt_bench.training.build import Assembly, assemble
from overopt_bench.types import Reward

ROUNDS = 3
PROXY = "aesthetic"
SHORT = 16  # queries of a round where networks are large: the ratio does not depend on their number


def bench(options: Options) -> dict[str, Any]:
    """Time one training round of each algorithm and its bare passes in turn, then an evaluation; print the table.

    Args:
        options: the user's; all algorithms that train are timed, plugins' included.

    Returns:
        ``rows``: per algorithm seconds a query, bare seconds a query, and their ratio (medians of three rounds), the
        seconds of a default run and the share of them that evaluation takes, and ``gpu_mb``, the most that was
        allocated on a GPU; ``peak_mb``: resident memory of the process; ``threads``.

    Raises:
        UserError: where the budget counts anything but queries.
    """
    if options.given.get("budget_unit", "queries") != "queries":
        raise UserError(f"--budget-unit {options.given['budget_unit']}: bench measures seconds a query; leave it out")
    runtime = options.runtime
    suite = get_suite(options.given["suite"], runtime.weights, options.given.get("model"))
    proxy = get_reward(PROXY, suite)
    chosen = [cls for name in algorithms.names() if (cls := algorithms.get(name)).role == "trains"]
    names = [cls.name for cls in chosen]
    rows = {}
    for cls in chosen:
        budget = 10**9 if suite.small else SHORT
        config = options.config(cls.name, PROXY, None, among=names, params=cls.steady, budget=budget)
        own = options.runtime_for(cls.name)
        rows[cls.name] = _compare(assemble(config, suite, {PROXY: proxy}, own, World(device=own.device)), proxy)
    config = options.config(names[0], PROXY, None, among=names)
    scorers = {name: get_reward(name, suite) for name in evaluated_rewards(suite, config.proxy, config.gold)}
    policy = assemble(config, suite, scorers, runtime, World(device=runtime.device)).policy
    evaluator = Evaluator.of_policy(
        policy, suite, scorers, config.training_prompts(suite), images=config.eval_images, eval_seed=config.eval_seed
    )
    evaluation = _evaluation_seconds(evaluator, policy, config.eval_points)
    for row in rows.values():
        row["default_run_seconds"] = evaluation + row["seconds_per_query"] * config.budget
        row["evaluation_share"] = evaluation / row["default_run_seconds"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result = {"rows": rows, "peak_mb": peak, "threads": torch.get_num_threads()}
    print(markdown(result))
    return result


def markdown(result: dict[str, Any]) -> str:
    """Write the result as a Markdown table."""
    on_gpu = any(row["gpu_mb"] for row in result["rows"].values())
    head = ["algorithm", "s / query", "bare passes, s / query", "ratio", "default run, minutes", "of it evaluation"]
    head += ["GPU memory, MB"] if on_gpu else []
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in result["rows"].items():
        cells = [
            name, f"{row['seconds_per_query']:.4f}", f"{row['bare']:.4f}", f"{row['ratio']:.2f}",
            f"{row['default_run_seconds'] / 60:.1f}", f"{row['evaluation_share']:.1%}",
        ]  # fmt: skip
        cells += [f"{row['gpu_mb']:.0f}"] if on_gpu else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Peak memory {result['peak_mb']:.0f} MB; {result['threads']} threads."])


def bare_passes(parts: Assembly, proxy: Reward, n: int, updates: int) -> Callable[[], None]:
    """Give the passes alone that a round takes by the algorithm's own account, on random inputs.

    They have the round's micro-batches, which do not reach across its optimizer steps, and leave no gradient behind.

    Args:
        parts: the run.
        proxy: its reward, whose cost is part of the bare one.
        n: images of a round.
        updates: optimizer steps of a round.
    """
    policy, algorithm = parts.policy, parts.algorithm
    image, micro = algorithm.cost(algorithm.params, policy.num_steps), algorithm.ctx.micro_batch
    prompts = list(algorithm.ctx.prompts)
    predicted, trained, encoded = (round(n * each) for each in (image.predicted, image.trained, image.encoded))
    times, rest = divmod(predicted, trained) if trained else (0, predicted)  # of each trained latent, and others
    kept = round(image.backpropagated)

    def forget() -> None:
        for p in policy.trainable():
            p.grad = None

    def passes() -> None:
        for x, own in _inputs(policy, prompts, n, micro if kept else policy.micro_batch):
            with torch.no_grad():
                for _ in range(policy.num_steps - kept):
                    _unet(policy, x, own)
            with torch.set_grad_enabled(bool(kept)):
                for _ in range(kept):
                    again = partial(recompute, _unet, use_reentrant=False) if algorithm.ctx.checkpoint else _unet
                    x = again(policy, x, own)
                scores = proxy(policy.decode(x), own)
            if kept:
                scores.sum().backward()
        forget()
        with torch.no_grad():
            for rows in [*[trained] * times, rest]:
                for share in _shares(rows, updates):
                    for x, own in _inputs(policy, prompts, share, micro):
                        _unet(policy, x, own)
            for x, _ in _inputs(policy, prompts, encoded, micro):
                algorithm.ctx.encoder(policy.decode(x))
        policy.network.recompute_blocks(algorithm.ctx.checkpoint)
        for share in _shares(trained, updates):
            for x, own in _inputs(policy, prompts, share, micro):
                _unet(policy, x, own).sum().backward()
            forget()

    return passes


def _shares(n: int, updates: int) -> list[int]:
    """How many of n rows each of the optimizer steps takes."""
    return [len(rows) for rows in torch.arange(n).tensor_split(updates)]


def _inputs(policy: DiffusionPolicy, prompts: list[str], n: int, micro: int) -> Iterator[tuple[Tensor, list[str]]]:
    for done in range(0, n, micro):
        m = min(micro, n - done)
        yield torch.randn(m, *policy.latent_shape, device=policy.device), (prompts * m)[:m]


def _unet(policy: DiffusionPolicy, x: Tensor, prompts: list[str]) -> Tensor:
    """One batch through the U-Net itself: N latents, or 2 N with guidance, and nothing else."""
    n, context, batch = len(x), policy.encode(prompts), x
    if policy.guidance_scale != 1:
        context, batch = Conditioning.cat([policy.encode.unconditional(n), context]), torch.cat([x, x])
    t = policy.timesteps[torch.zeros(len(batch), dtype=torch.long)]
    with torch.autocast(policy.device.type, policy.dtype, enabled=policy.dtype != torch.float32):
        out = policy.unet(
            batch.to(memory_format=torch.channels_last), t, context.embeds, added_cond_kwargs=context.added,
            return_dict=False,
        )[0]  # fmt: skip
    return torch.as_tensor(out[:n].float())


def steady_round(parts: Assembly) -> Callable[[], dict[str, float]]:
    """Give what takes one round of the algorithm and returns its metrics; each has the whole budget before it."""

    def one_round() -> dict[str, float]:
        parts.budget.queries = 0
        return parts.algorithm.step()

    return one_round


def _compare(parts: Assembly, proxy: Reward) -> dict[str, float]:
    device, on_gpu = parts.policy.device, parts.policy.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)

    one_round = steady_round(parts)
    updates = int(one_round().get("optimizer_steps", 1))  # the first one warms up
    queries = parts.budget.queries
    gpu_mb = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else 0.0
    bare = bare_passes(parts, proxy, queries, updates)
    bare()
    own, alone = [], []
    for _ in range(ROUNDS):
        own.append(_seconds(one_round, device) / queries)
        alone.append(_seconds(bare, device) / queries)
    mine, floor = statistics.median(own), statistics.median(alone)
    ratio = statistics.median(a / b for a, b in zip(own, alone, strict=True))
    return {"seconds_per_query": mine, "bare": floor, "ratio": ratio, "gpu_mb": gpu_mb}


def _evaluation_seconds(evaluator: Evaluator, policy: DiffusionPolicy, points: int) -> float:
    """All evaluations of a run: the start, where there is no distance to measure, those between, and the end."""
    start = _seconds(evaluator, policy.device)
    with torch.no_grad():  # a policy that has trained is no longer the base model
        for parameter in policy.trainable():
            parameter.add_(1e-4)
    between = _seconds(partial(evaluator, whole=False), policy.device)
    return start + (points - 2) * between + _seconds(evaluator, policy.device)


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
