"""Every command as a Python function; the command line is made of these very functions.

Imports are inside the functions so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.commands import options as o

if TYPE_CHECKING:
    from overopt_bench.commands.settings import Options
    from overopt_bench.config import RunConfig


def run(
    algo: o.Algo = None, proxy: o.Proxy = None, gold: o.Gold = None, suite: o.Suite = None, seed: o.Seed = None,
    budget: o.Budget = None, budget_unit: o.BudgetUnit = None, set: o.Set = None, num_steps: o.NumSteps = None,
    guidance_scale: o.GuidanceScale = None, eta: o.Eta = None, lora_rank: o.LoraRank = None,
    lora_alpha: o.LoraAlpha = None, eval_points: o.EvalPoints = None, eval_images: o.EvalImages = None,
    eval_seed: o.EvalSeed = None, train_split: o.TrainSplit = None, prompts: o.PromptFile = None,
    prompt_column: o.PromptColumn = None, model: o.Model = None,
    precision: o.Precision = None, tag: o.Tag = None, preset: o.Preset = None, plugin: o.Plugin = None,
    config: o.Config = None, out: o.Out = Path("results"), device: o.Device = None, weights: o.Weights = None,
    micro_batch: o.MicroBatch = None, compile: o.Compile = False, attention: o.Attention = None,
    tracker: o.Tracker = None, take_over: o.TakeOver = False,
) -> Path:  # fmt: skip
    """Optimise a proxy under a budget, or resume what was cut off.

    Returns the run folder, OUT/SUITE/PROXY/ALGO/seedN[-TAG].
    """
    from overopt_bench.commands.settings import make_runtime, probe, read_options
    from overopt_bench.config import parse_set

    given = {
        "gold": gold, "suite": suite, "budget": budget, "budget_unit": budget_unit, "num_steps": num_steps,
        "guidance_scale": guidance_scale, "eta": eta, "lora_rank": lora_rank, "lora_alpha": lora_alpha,
        "eval_points": eval_points, "eval_images": eval_images, "eval_seed": eval_seed, "train_split": train_split,
        "train_prompts": prompts and str(prompts), "model": model, "precision": precision, "tag": tag,
    }  # fmt: skip
    runtime = make_runtime(device, weights, micro_batch=micro_batch, compile=compile, attention=attention)
    options = read_options(given, plugin, config, preset, runtime, prompt_column)
    resolved = options.config(algo, proxy, seed, parse_set(set or ()))
    _announce(options, [resolved])
    probe(resolved, options.runtime)
    return _start(resolved, options, out, tracker, take_over)


def sweep(
    algo: o.Algos, proxy: o.Proxies, seeds: o.Seeds = "0-4", gold: o.Gold = None, suite: o.Suite = None,
    budget: o.Budget = None, budget_unit: o.BudgetUnit = None, set: o.Set = None, eval_points: o.EvalPoints = None,
    eval_images: o.EvalImages = None, train_split: o.TrainSplit = None, prompts: o.PromptFile = None,
    prompt_column: o.PromptColumn = None,
    model: o.Model = None, precision: o.Precision = None, tag: o.Tag = None, preset: o.Preset = None,
    plugin: o.Plugin = None, config: o.Config = None, out: o.Out = Path("results"), device: o.Device = None,
    weights: o.Weights = None, micro_batch: o.MicroBatch = None, compile: o.Compile = False,
    attention: o.Attention = None, take_over: o.TakeOver = False,
) -> builtins.list[Path]:  # fmt: skip
    """Run algorithms x proxies x seeds; skip complete, resume others.

    One after the other. --set lr=1e-4 is for all algorithms, --set ddpo.lr=1e-4 for one. Returns the run folders.
    """
    from overopt_bench.commands.settings import make_runtime, probe, read_options
    from overopt_bench.commands.sweep import pairs_for, parse_names, parse_seeds, run_all
    from overopt_bench.config import parse_set

    given = {
        "gold": gold, "suite": suite, "budget": budget, "budget_unit": budget_unit, "eval_points": eval_points,
        "eval_images": eval_images, "train_split": train_split, "train_prompts": prompts and str(prompts),
        "model": model, "precision": precision, "tag": tag,
    }  # fmt: skip
    runtime = make_runtime(device, weights, micro_batch=micro_batch, compile=compile, attention=attention)
    options = read_options(given, plugin, config, preset, runtime, prompt_column)
    algos, proxies = parse_names("--algo", algo), parse_names("--proxy", proxy)
    configs = [
        options.config(name, target, seed, parse_set(pairs_for(name, algos, set or ())))
        for target in proxies for name in algos for seed in parse_seeds(seeds)
    ]  # fmt: skip
    _announce(options, configs)
    for one in {c.proxy: c for c in configs}.values():
        probe(one, options.runtime)
    return run_all(configs, out, lambda one: _start(one, options, out, take_over=take_over))


def report(results: o.Results = None, reference: o.Reference = False, out: o.ReportOut = Path("report")) -> Path:
    """Draw figures, tables and a verdict from results.

    Without RESULTS, of your own runs in the folder results. Returns the path of the page, OUT/index.html.
    """
    from overopt_bench.report import build_report

    index = build_report([Path(path) for path in results] if results else None, Path(out), reference)
    print(index)
    return index


def list(what: o.What = None) -> str:
    """Show algorithms, rewards and suites, and all parameters."""
    from overopt_bench.commands.list import describe

    text = describe(what)
    print(text)
    return text


def sample(
    run: o.Run, prompt: o.Prompts, count: o.Count = 4, seed: o.SampleSeed = 0, out: o.ImagesOut = Path("samples"),
    plugin: o.Plugin = None, device: o.Device = None, weights: o.Weights = None,
) -> builtins.list[Path]:  # fmt: skip
    """Draw images from a trained policy.

    With the sampler of the run; the noise depends on seed, prompt and index. Returns the files.
    """
    from overopt_bench.commands.sample import draw
    from overopt_bench.commands.settings import make_runtime
    from overopt_bench.plugins import load_plugins

    load_plugins(plugin)
    files = draw(Path(run), prompt, count, seed, Path(out), make_runtime(device, weights))
    print(*files, sep="\n")
    return files


def eval(
    run: o.Run, prompt: o.EvalPrompts = None, reward: o.EvalRewards = None, count: o.Count = 4, seed: o.SampleSeed = 0,
    plugin: o.Plugin = None, device: o.Device = None, weights: o.Weights = None,
) -> Any:  # fmt: skip
    """Score a trained policy beside its base model.

    On the same noise; on the held-out prompts and with the suite's rewards where none is given. Returns the table, a
    pandas ``DataFrame``.
    """
    from overopt_bench.commands.eval import assess
    from overopt_bench.commands.settings import make_runtime
    from overopt_bench.plugins import load_plugins

    load_plugins(plugin)
    table = assess(Path(run), prompt or (), reward or (), count, seed, make_runtime(device, weights))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}", na_rep="-"))
    return table


def score(
    image: o.Pictures, reward: o.Rewards, prompt: o.Prompt = "", csv: o.Csv = False, suite: o.Suite = None,
    plugin: o.Plugin = None, device: o.Device = None, weights: o.Weights = None,
) -> Any:  # fmt: skip
    """Score pictures from disk with one or more rewards.

    Through the reward's official transform, else brought to the suite's image size. A file that cannot be read is
    named once the others are scored. Returns the table, a pandas ``DataFrame``.
    """
    from overopt_bench.commands.score import score as ask
    from overopt_bench.commands.settings import choose_suite, make_runtime
    from overopt_bench.errors import RunError
    from overopt_bench.plugins import load_plugins
    from overopt_bench.registry import get_suite

    load_plugins(plugin)
    runtime = make_runtime(device, weights)
    world = get_suite(choose_suite(suite, runtime.weights)[0], runtime.weights)
    table, complaints = ask(reward, prompt, [Path(p) for p in image], world, runtime.device)
    print(table.to_csv(index=False) if csv else table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    if complaints:
        raise RunError("; ".join(complaints))
    return table


def bench(
    suite: o.Suite = None, model: o.Model = None, precision: o.Precision = None, device: o.Device = None,
    weights: o.Weights = None, micro_batch: o.MicroBatch = None, compile: o.Compile = False,
    attention: o.Attention = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure speed as ratios to the network passes alone."""
    from overopt_bench.commands.bench import bench as measure
    from overopt_bench.commands.settings import choose_suite, make_runtime

    runtime = make_runtime(device, weights, micro_batch=micro_batch, compile=compile, attention=attention)
    name, reason = choose_suite(suite, runtime.weights, model)
    print(f"suite {name}: {reason}")
    return measure(name, runtime, model=model, precision=precision)


def doctor(
    run: o.AnyRun = None, suite: o.Suite = None, model: o.Model = None, device: o.Device = None,
    weights: o.Weights = None,
) -> Any:  # fmt: skip
    """Say what is installed, what is missing and how to get it.

    And whether disk and GPU hold it, and what a run takes. Of a run folder: how it was made, on which machines and with
    which versions. Returns a ``doctor.Diagnosis``; fails where a default run of the suite could not start.
    """
    from overopt_bench.commands.doctor import describe_run, diagnose
    from overopt_bench.commands.settings import choose_suite, make_runtime
    from overopt_bench.errors import RunError

    if run is not None:
        found = describe_run(Path(run))
        print(found.text)
        return found
    runtime = make_runtime(device, weights)
    name, reason = choose_suite(suite, runtime.weights, model)
    report = diagnose(name, reason, runtime, model)
    print(report.text)
    if report.problems:
        raise RunError(f"not ready: {'; '.join(report.problems)}")
    return report


def _announce(options: Options, configs: builtins.list[RunConfig]) -> None:
    """The first line says which suite and why; warnings go to stderr."""
    from overopt_bench.config import warnings

    if os.environ.get("RANK", "0") != "0":  # one of several processes of a run: the first one speaks
        return
    print(f"suite {options.given['suite']}: {options.suite_reason}", flush=True)
    for line in dict.fromkeys([*options.notes, *(line for config in configs for line in warnings(config))]):
        print("warning:", line, file=sys.stderr, flush=True)


def _start(
    config: RunConfig, options: Options, out: Path, tracker: str | None = None, take_over: bool = False
) -> Path:  # fmt: skip
    from overopt_bench.training import loop as train

    return train.run(
        config, out=Path(out), runtime=options.runtime, plugins=options.plugins, tracker=tracker, take_over=take_over
    )
