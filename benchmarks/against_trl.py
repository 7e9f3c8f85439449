"""Our algorithms beside trl's trainers: seconds a query, in turn, on the same pipeline, adapter, batch and reward.

    python benchmarks/against_trl.py --environment DIR

DIR is trl 0.23 with the libraries of its time (``tests/official/environment_trl.sh``); where it does not exist it is made,
which takes some minutes and 600 MB. Each case is served by two processes, one a side, that are asked in turn for a round
each, and are started anew several times, for two processes of one program differ by up to 20 % in the same passes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases import CASES

HERE = Path(__file__).parent
OFFICIAL = HERE.parent / "tests" / "official"  # makes the environment, and knows how to load mini's pipeline there
DIFFERENCES = """What cannot be made equal:

- trl computes the activations of AlignProp's passes again in every backward pass and has no option for it; ours does so
  with `--checkpoint` (column "recomputed").
- trl's DDPO without guidance fails in the diffusers of its time, which hands over negative prompts as well; one line of
  ours keeps them away.
- trl runs in diffusers 0.35, transformers 4.56 and peft 0.17, ours in the installed ones; torch is the same.
- Ours holds the U-Net in the channels-last layout, trl as it is loaded.
- trl's DDPO shuffles the steps of each chain by itself and ours does not; both take each transition once, in passes of a
  batch. Noise, adapter weights and prompts are drawn by each side's own generators.
- Ours computes log-probabilities, statistics and records of each side's own kind; they are below 1 % of a round."""


class Worker:
    """A process that answers the name of a contestant with the seconds of one round of it."""

    def __init__(self, script: str, arguments: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment}, cwd=HERE,
        )  # fmt: skip
        self.names: list[str] = self.read()

    def read(self) -> Any:
        """Read an answer."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))} ended with {self.process.wait()}; see above")
        return json.loads(line)

    def round(self, name: str) -> dict[str, float]:
        """Run one round and give its ``cpu`` and ``wall`` seconds."""
        assert self.process.stdin is not None
        print(name, file=self.process.stdin, flush=True)
        return dict(self.read())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def workers(case: str, options: argparse.Namespace) -> Iterator[list[Worker]]:
    """Start both sides of a case; at the end they are closed."""
    arguments = [case, str(options.batch), str(options.threads)]
    threads = {"OMP_NUM_THREADS": str(options.threads)}
    theirs = {"PYTHONPATH": f"{options.environment.resolve()}:{OFFICIAL}", "HF_HUB_OFFLINE": "1"}
    started: list[Worker] = []
    try:
        started.append(Worker("ours.py", arguments, threads))
        started.append(Worker("theirs.py", arguments, {**threads, **theirs}))
        yield started
    finally:
        for worker in started:
            worker.close()


def measure(case: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time a case.

    Returns:
        ``rounds``: per contestant the CPU seconds a query of every round of every start, in the same order;
        ``first``: per contestant the CPU seconds of the first round after each start, compilation included.
    """
    rounds: dict[str, list[float]] = defaultdict(list)
    first: dict[str, list[float]] = defaultdict(list)
    for start in range(options.starts):
        print(f"{case}: start {start + 1} of {options.starts}", file=sys.stderr, flush=True)
        with workers(case, options) as sides:
            contestants = [(worker, name) for worker in sides for name in worker.names if name not in options.leave_out]
            for worker, name in contestants:
                first[name].append(worker.round(name)["cpu"])
            for _ in range(options.rounds):
                for worker, name in contestants:
                    rounds[name].append(worker.round(name)["cpu"] / options.batch)
    return {"rounds": dict(rounds), "first": dict(first)}


def ratio(rounds: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of the ratio of two contestants that ran one after the other."""
    return statistics.median(a / b for a, b in zip(rounds[above], rounds[below], strict=True))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Write the results as a Markdown table: medians of CPU seconds a query, and medians of ratios."""
    contestants = ("ours", "recomputed", "compiled", "bare", "trl")
    head = [
        "",
        *contestants,
        "ours / bare",
        "compiled / bare",
        "trl / ours",
        "trl / compiled",
        "first round compiled, s",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for case, result in results.items():
        rounds = result["rounds"]
        cells = [f"{statistics.median(rounds[name]):.4f}" if name in rounds else "" for name in contestants]
        pairs = (("ours", "bare"), ("compiled", "bare"), ("trl", "ours"), ("trl", "compiled"))
        cells += [f"{ratio(rounds, *pair):.2f}" if {*pair} <= rounds.keys() else "" for pair in pairs]
        cells.append(", ".join(f"{seconds:.0f}" for seconds in result["first"].get("compiled", [])))
        lines.append(f"| {case} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Make the environment where there is none, time all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--environment", type=Path, required=True, metavar="DIR", help="of trl; made where it is missing"
    )
    parser.add_argument("--rounds", type=int, default=6, help="of each contestant after each start (default 6)")
    parser.add_argument("--starts", type=int, default=3, help="of both processes of each case (default 3)")
    parser.add_argument("--batch", type=int, default=32, help="images of a round and rows of a pass (default 32)")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; may be repeated")
    parser.add_argument(
        "--leave-out", action="append", default=[], metavar="COLUMN", help="of the table; may be repeated"
    )
    parser.add_argument("--output", type=Path, help="also write every measured number there, as JSON")
    options = parser.parse_args()
    if not options.environment.exists():
        subprocess.run(
            ["bash", str(OFFICIAL / "environment_trl.sh"), str(options.environment)], check=True, stdout=sys.stderr
        )
    results = {case: measure(case, options) for case in options.case or CASES}
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(
        f"CPU seconds a query, medians of {options.starts} starts of {options.rounds} rounds of {options.batch} images;",
        end=" ",
    )
    print(
        f"threads: {options.threads}; torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}.\n"
    )
    print(table(results), f"\n{DIFFERENCES}", sep="\n")


if __name__ == "__main__":
    main()
