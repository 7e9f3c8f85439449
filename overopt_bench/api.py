"""Every command as a Python function; the command line is made of these very functions.

Each takes what its model in ``commands/requests.py`` declares. Imports are inside the functions so that ``--help`` does
not wait for torch.
"""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.commands import requests
from overopt_bench.commands.command import Arguments, command
from overopt_bench.compute.runtime import Runtime

if TYPE_CHECKING:
    from overopt_bench.evaluation.ceiling import Ceiling


@command(requests.RunRequest)
def run(arguments: Arguments) -> Path:
    """Optimise a proxy under a budget, or resume what was cut off.

    Returns the run folder, OUT/SUITE/PROXY/ALGO/seedN[-TAG].
    """
    from overopt_bench.commands.run import run_one

    return run_one(arguments)


@command(requests.SweepRequest)
def sweep(arguments: Arguments) -> builtins.list[Path]:
    """Run algorithms x proxies x seeds; skip complete, resume others.

    Side by side (--jobs), one by its index, or on a cluster. --set lr=1e-4 is for all algorithms, --set ddpo.lr=1e-4 for
    one. Returns the run folders.
    """
    from overopt_bench.commands.sweep import run_grid

    return run_grid(arguments)


@command(requests.ReportRequest)
def report(arguments: Arguments) -> Path:
    """Draw figures, tables and a verdict from results.

    Without RESULTS, of your own runs in the folder results. Returns the path of the page, OUT/index.html.
    """
    from overopt_bench.report import build_report

    asked = arguments.make(requests.ReportRequest)
    index = build_report([Path(path) for path in asked.results] or None, asked.out, asked.reference)
    print(index)
    return index


@command(requests.CompareRequest)
def compare(arguments: Arguments) -> Any:
    """Compare two labels seed by seed.

    For each proxy and gold that both have: gold and proxy at the end and the fall of gold from its peak, A - B with its
    95 % interval, in how many pairs A is above B, and p, corrected for all rows (Holm). Returns the table, a pandas
    ``DataFrame``.
    """
    from overopt_bench.commands.compare import compare as measure
    from overopt_bench.commands.compare import show

    asked = arguments.make(requests.CompareRequest)
    table = measure(asked.a, asked.b, asked.results)
    if asked.csv:
        print(table.to_csv(index=False))
    else:
        show(table, asked.a, asked.b)
    return table


@command(requests.ListRequest)
def list(arguments: Arguments) -> str:
    """Show algorithms, rewards and suites, and all parameters."""
    from overopt_bench.commands.list import describe

    text = describe(arguments.make(requests.ListRequest).what)
    print(text)
    return text


@command(requests.SampleRequest)
def sample(arguments: Arguments) -> builtins.list[Path]:
    """Draw images from a trained policy.

    With the sampler of the run; the noise depends on seed, prompt and index. Returns the files.
    """
    from overopt_bench.commands.sample import draw
    from overopt_bench.commands.settings import make_runtime
    from overopt_bench.plugins import load_plugins

    asked = arguments.make(requests.Drawings)
    load_plugins(arguments.make(requests.Plugins).plugin)
    files = draw(asked.run, asked.prompt, asked.count, asked.seed, asked.out, make_runtime(arguments.of(Runtime)))
    print(*files, sep="\n")
    return files


@command(requests.EvalRequest)
def eval(arguments: Arguments) -> Any:
    """Score a trained policy beside its base model.

    On the same noise; on the held-out prompts and with the suite's rewards where none is given. Returns the table, a
    pandas ``DataFrame``.
    """
    from overopt_bench.commands.eval import assess
    from overopt_bench.commands.settings import make_runtime
    from overopt_bench.plugins import load_plugins

    asked = arguments.make(requests.Comparison)
    load_plugins(arguments.make(requests.Plugins).plugin)
    table = assess(asked.run, asked.prompt, asked.reward, asked.count, asked.seed, make_runtime(arguments.of(Runtime)))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}", na_rep="-"))
    return table


@command(requests.ScoreRequest)
def score(arguments: Arguments) -> Any:
    """Score pictures from disk with one or more rewards.

    Through the reward's official transform, else brought to the suite's image size. A file that cannot be read is
    named once the others are scored. Returns the table, a pandas ``DataFrame``.
    """
    from overopt_bench.commands.score import score as ask
    from overopt_bench.commands.settings import choose_suite, make_runtime
    from overopt_bench.errors import RunError
    from overopt_bench.plugins import load_plugins
    from overopt_bench.registry import get_suite

    asked = arguments.make(requests.Pictures)
    load_plugins(arguments.make(requests.Plugins).plugin)
    runtime = make_runtime(arguments.of(Runtime))
    suite = get_suite(choose_suite(arguments.given.get("suite"), runtime.weights)[0], runtime.weights)
    table, complaints = ask(asked.reward, asked.prompt, asked.image, suite, runtime.device)
    print(table.to_csv(index=False) if asked.csv else table.to_string(index=False, float_format=lambda x: f"{x:.4f}"))
    if complaints:
        raise RunError("; ".join(complaints))
    return table


@command(requests.CeilingRequest)
def ceiling(arguments: Arguments) -> Ceiling:
    """Say how much of the returns a temporal critic could explain, by denoising step.

    Of images of the base model or of a run's policy, on chains and on prompts that the critics were not fitted on; nothing
    is trained on the proxy. Returns an ``evaluation.ceiling.Ceiling``.
    """
    from overopt_bench.commands.ceiling import ask
    from overopt_bench.commands.questions import choose
    from overopt_bench.commands.settings import make_runtime
    from overopt_bench.plugins import load_plugins

    asked, given = arguments.make(requests.Questions), arguments.given
    load_plugins(arguments.make(requests.Plugins).plugin)
    runtime = make_runtime(arguments.of(Runtime))
    subject = choose(asked, given.get("suite"), given.get("model"), runtime)
    print(f"suite {subject.suite.name}: {subject.reason}", flush=True)
    result = ask(asked, subject, runtime)
    result.show()
    if asked.out is not None:
        result.write(asked.out)
        print(asked.out)
    return result


@command(requests.BenchRequest)
def bench(arguments: Arguments) -> dict[str, Any]:
    """Measure speed as ratios to the network passes alone."""
    from overopt_bench.commands.bench import bench as measure
    from overopt_bench.commands.run import announce
    from overopt_bench.commands.settings import read_options

    options = read_options(arguments)
    announce(options, [])
    return measure(options)


@command(requests.DoctorRequest)
def doctor(arguments: Arguments) -> Any:
    """Say what is installed, what is missing and how to get it.

    And whether disk and GPU hold it, and what a run takes. Of a run folder: how it was made, on which machines and with
    which versions. Returns a ``doctor.Diagnosis``; fails where a default run of the suite could not start.
    """
    from overopt_bench.commands.doctor import describe_run, diagnose
    from overopt_bench.commands.settings import choose_suite, make_runtime
    from overopt_bench.errors import RunError

    given = arguments.given
    if "run" in given:
        diagnosis = describe_run(Path(given["run"]))
        print(diagnosis.text)
        return diagnosis
    runtime = make_runtime(arguments.of(Runtime))
    name, reason = choose_suite(given.get("suite"), runtime.weights, given.get("model"))
    report = diagnose(name, reason, runtime, given.get("model"))
    print(report.text)
    if report.problems:
        raise RunError(f"not ready: {'; '.join(report.problems)}")
    return report
