"""Every command as a Python function; the command line is made of these very functions.

Imports are inside the functions so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench import options as o

if TYPE_CHECKING:
    from overopt_bench.config import RunConfig
    from overopt_bench.prepare import Options


def run(
    algo: o.Algo = None, proxy: o.Proxy = None, gold: o.Gold = None, suite: o.Suite = None, seed: o.Seed = None,
    budget: o.Budget = None, budget_unit: o.BudgetUnit = None, set: o.Set = None, num_steps: o.NumSteps = None,
    guidance_scale: o.GuidanceScale = None, eta: o.Eta = None, lora_rank: o.LoraRank = None,
    lora_alpha: o.LoraAlpha = None, eval_points: o.EvalPoints = None, eval_images: o.EvalImages = None,
    eval_seed: o.EvalSeed = None, train_split: o.TrainSplit = None, tag: o.Tag = None, plugin: o.Plugin = None, config: o.Config = None,
    out: o.Out = Path("results"), device: o.Device = None, tracker: o.Tracker = None,
) -> Path:  # fmt: skip
    """Optimise a proxy under a budget, or resume what was cut off.

    Returns the run folder, OUT/SUITE/PROXY/ALGO/seedN[-TAG].
    """
    from overopt_bench.config import parse_set
    from overopt_bench.prepare import probe, read_options

    given = {
        "gold": gold, "suite": suite, "budget": budget, "budget_unit": budget_unit, "num_steps": num_steps,
        "guidance_scale": guidance_scale, "eta": eta, "lora_rank": lora_rank, "lora_alpha": lora_alpha,
        "eval_points": eval_points, "eval_images": eval_images, "eval_seed": eval_seed, "train_split": train_split, "tag": tag,
    }  # fmt: skip
    options = read_options(given, plugin, config, device)
    resolved = options.config(algo, proxy, seed, parse_set(set or ()))
    _announce(options, [resolved])
    probe(resolved)
    return _start(resolved, options, out, tracker)


def sweep(
    algo: o.Algos, proxy: o.Proxies, seeds: o.Seeds = "0-4", gold: o.Gold = None, suite: o.Suite = None,
    budget: o.Budget = None, budget_unit: o.BudgetUnit = None, set: o.Set = None, eval_points: o.EvalPoints = None,
    eval_images: o.EvalImages = None, train_split: o.TrainSplit = None, tag: o.Tag = None, plugin: o.Plugin = None, config: o.Config = None,
    out: o.Out = Path("results"), device: o.Device = None,
) -> builtins.list[Path]:  # fmt: skip
    """Run algorithms x proxies x seeds; skip complete, resume others.

    One after the other. --set lr=1e-4 is for all algorithms, --set ddpo.lr=1e-4 for one. Returns the run folders.
    """
    from overopt_bench.config import parse_set
    from overopt_bench.prepare import probe, read_options
    from overopt_bench.sweep import pairs_for, parse_names, parse_seeds, run_all

    given = {
        "gold": gold, "suite": suite, "budget": budget, "budget_unit": budget_unit, "eval_points": eval_points,
        "eval_images": eval_images, "train_split": train_split, "tag": tag,
    }  # fmt: skip
    options = read_options(given, plugin, config, device)
    algos, proxies = parse_names("--algo", algo), parse_names("--proxy", proxy)
    configs = [
        options.config(name, target, seed, parse_set(pairs_for(name, algos, set or ())))
        for target in proxies for name in algos for seed in parse_seeds(seeds)
    ]  # fmt: skip
    _announce(options, configs)
    for one in {c.proxy: c for c in configs}.values():
        probe(one)
    return run_all(configs, out, lambda one: _start(one, options, out))


def report(results: o.Results = None, out: o.ReportOut = Path("report")) -> Path:
    """Draw figures, tables and a verdict from results.

    Returns the path of the page, OUT/index.html.
    """
    from overopt_bench.report import build_report

    index = build_report([Path(path) for path in results or ["results"]], Path(out))
    print(index)
    return index


def list(what: o.What = None) -> str:
    """Show algorithms, rewards and suites, and all parameters."""
    from overopt_bench.listing import describe

    text = describe(what)
    print(text)
    return text


def sample(
    run: o.Run, prompt: o.Prompts, count: o.Count = 4, seed: o.SampleSeed = 0, out: o.ImagesOut = Path("samples"),
    plugin: o.Plugin = None, device: o.Device = None,
) -> builtins.list[Path]:  # fmt: skip
    """Draw images from a trained policy.

    With the sampler of the run; the noise depends on seed, prompt and index. Returns the files.
    """
    from overopt_bench.draw import draw
    from overopt_bench.plugins import load_plugins
    from overopt_bench.prepare import choose_device

    load_plugins(plugin)
    files = draw(Path(run), prompt, count, seed, Path(out), choose_device(device))
    print(*files, sep="\n")
    return files


def eval(
    run: o.Run, prompt: o.EvalPrompts = None, count: o.Count = 4, seed: o.SampleSeed = 0, plugin: o.Plugin = None,
    device: o.Device = None,
) -> Any:  # fmt: skip
    """Score a trained policy beside its base model with every reward.

    On the same noise; on the held-out prompts where none is given. Returns the table, a pandas ``DataFrame``.
    """
    from overopt_bench.assess import assess
    from overopt_bench.plugins import load_plugins
    from overopt_bench.prepare import choose_device

    load_plugins(plugin)
    table = assess(Path(run), prompt or (), count, seed, choose_device(device))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    return table


def score(
    image: o.Pictures, reward: o.Rewards, prompt: o.Prompt = "", csv: o.Csv = False, suite: o.Suite = None,
    plugin: o.Plugin = None, device: o.Device = None,
) -> Any:  # fmt: skip
    """Score pictures from disk with one or more rewards.

    They are brought to the suite's image size. A file that cannot be read is named once the others are scored.
    Returns the table, a pandas ``DataFrame``.
    """
    from overopt_bench.errors import RunError
    from overopt_bench.plugins import load_plugins
    from overopt_bench.prepare import choose_device, choose_suite
    from overopt_bench.registry import get_suite
    from overopt_bench.score import score as ask

    load_plugins(plugin)
    where = choose_device(device)
    table, complaints = ask(reward, prompt, [Path(p) for p in image], get_suite(choose_suite(suite)[0]), where)
    print(table.to_csv(index=False) if csv else table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    if complaints:
        raise RunError("; ".join(complaints))
    return table


def bench(suite: o.Suite = None, device: o.Device = None) -> dict[str, Any]:
    """Measure speed as ratios to the network passes alone."""
    from overopt_bench.bench import bench as measure
    from overopt_bench.prepare import choose_device, choose_suite

    name, reason = choose_suite(suite)
    print(f"suite {name}: {reason}")
    return measure(name, device=choose_device(device))


def _announce(options: Options, configs: builtins.list[RunConfig]) -> None:
    """The first line says which suite and why; warnings go to stderr."""
    from overopt_bench.config import warnings

    print(f"suite {options.given['suite']}: {options.suite_reason}", flush=True)
    for line in dict.fromkeys(line for config in configs for line in warnings(config)):
        print("warning:", line, file=sys.stderr, flush=True)


def _start(config: RunConfig, options: Options, out: Path, tracker: str | None = None) -> Path:
    from overopt_bench import train

    return train.run(config, out=Path(out), device=options.device, plugins=options.plugins, tracker=tracker)
