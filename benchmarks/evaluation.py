"""Evaluation's share of a default run of mini, for every algorithm that trains, as a Markdown table.

    OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/evaluation.py [--algorithm NAME ...] [--proxy NAME] [--budget N]

Each algorithm is trained for a short budget in this process, with the suite's settings and the images of a default
evaluation, and CPU seconds of its rounds and of its evaluations are counted, writing included. The last columns
extrapolate them to the default budget and number of evaluations. Between start and end the first evaluation also takes
what the later ones reuse, so it counts once, and the last one as often as there are others. CPU seconds are those of
all threads: run it with one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, resolve
from overopt_bench.registry import algorithms, get_suite
from overopt_bench.training import loop

POINTS = 4  # of the short run: start, two between where the rounds are short enough, end


@dataclass
class Spent:
    """CPU seconds of one short run: of all its rounds, and of each evaluation."""

    training: float = 0.0
    evaluations: list[float] = field(default_factory=list)


class Timed(loop._Session):
    """A run whose rounds and evaluations are timed."""

    spent: Spent

    def _step(self) -> None:
        with _clock() as seconds:
            super()._step()
        self.spent.training += seconds[0]

    def _evaluate(self) -> None:
        with _clock() as seconds:
            super()._evaluate()
        self.spent.evaluations.append(seconds[0])


@contextlib.contextmanager
def _clock() -> Iterator[list[float]]:
    seconds = [0.0]
    started = time.process_time()
    yield seconds
    seconds[0] = time.process_time() - started


def measure(config: RunConfig) -> Spent:
    """Train one short run into a folder that is thrown away, and give what it took."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        session = Timed(config, Path(out), Runtime(device="cpu"), (), None, False)
        session.spent = Spent()
        with contextlib.closing(session):
            session.run()
    return session.spent


def line(name: str, spent: Spent, short: int, budget: int, points: int) -> str:
    """One algorithm's row of the table."""
    start, *between, end = spent.evaluations
    if not between:
        raise SystemExit(f"{name} spends {short} queries in one round; give a larger --budget")
    evaluation = start + between[0] + (points - 3) * between[-1] + end
    training = spent.training / short * budget
    share = evaluation / (evaluation + training)
    return (
        f"| {name} | {spent.training / short:.4f} | {start:.1f} | {between[0]:.1f} | {between[-1]:.1f} | {end:.1f} |"
        f" {training:.0f} | {evaluation:.0f} | **{share:.0%}** |"
    )


def main() -> None:
    """Measure what the command line names, and print the table."""
    trained = [cls.name for cls in algorithms.in_order() if cls.role == "trains"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--algorithm", nargs="*", choices=trained, default=trained)
    parser.add_argument("--proxy", default="aesthetic")
    parser.add_argument("--budget", type=int, default=256, help="queries of the short run")
    asked = parser.parse_args()
    whole = get_suite("mini").defaults
    print(f"Evaluation's share of a default run: {whole.budget} queries, {whole.eval_points} evaluations, both")
    print(f"extrapolated from {asked.budget} queries; CPU seconds, {torch.get_num_threads()} thread(s).\n")
    print(
        "| algorithm | training, s / query | start | first between | each later | end | training | evaluation | share |"
    )
    print("|---|" + "---|" * 8)
    given = {"suite": "mini", "proxy": asked.proxy, "budget": asked.budget, "eval_points": POINTS, "seed": 0}
    for name in asked.algorithm:
        spent = measure(resolve({**given, "algo": name, "mitigation": ()}))
        print(line(name, spent, asked.budget, whole.budget, whole.eval_points), flush=True)


if __name__ == "__main__":
    main()
