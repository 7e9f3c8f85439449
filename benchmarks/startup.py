"""How long the command line takes to answer: CPU and wall seconds of whole processes, as a Markdown table.

    python benchmarks/startup.py [--rounds N] [CHECKOUT ...]

Each round runs every command once in every checkout, in turn (this one where none is given), so that a machine that is
busy for a while slows all of them alike; shown are the medians. Checkouts need their entry points: ``pip install -e .``,
or ``python -c "import setuptools; setuptools.setup()" -q egg_info``. The first round reads files into the cache and does
not count.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
MODULE = ("-m", "overopt_bench")
RUN = (*MODULE, "run", "--suite", "mini", "--proxy", "aesthetic")
RECORD = (*MODULE, "run", "--suite", "mini", "--algo", "tdpo", "--proxy", "imagereward", "--seed", "1")
ANSWERS: dict[str, tuple[str, ...]] = {
    "`python -c pass`": ("-c", "pass"),
    "`import torch` alone": ("-c", "import torch"),
    "`--help`": (*MODULE, "--help"),
    "`list`": (*MODULE, "list"),
    "a refused algorithm": (*RUN, "--algo", "ddpoo"),
    "a refused number": (*RUN, "--algo", "ddpo", "--budget", "-3"),
    "a refused parameter": (*RUN, "--algo", "ddpo", "--set", "lr=-1"),
    "a folder of another configuration": (*RECORD, "--out", str(HERE / "results/reference"), "--budget", "77"),
    "`doctor`": (*MODULE, "doctor", "--suite", "mini"),
}


def answer(checkout: Path, arguments: tuple[str, ...]) -> tuple[float, float]:
    """Run one command and return its CPU and its wall seconds."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, check=False)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        sys.exit(f"{checkout}: {' '.join(arguments)} failed: {done.stderr.decode(errors='replace')}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    """Measure what the command line names, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", nargs="*", type=Path, default=[HERE])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    checkouts = [path.resolve() for path in asked.checkout]
    seconds: dict[tuple[str, Path], list[tuple[float, float]]] = {}
    for number in range(asked.rounds + 1):
        for name, arguments in ANSWERS.items():
            for checkout in checkouts:
                measured = answer(checkout, arguments)
                if number > 0:
                    seconds.setdefault((name, checkout), []).append(measured)
    print("| answer |" + "".join(f" {path.name}, CPU s | wall s |" for path in checkouts))
    print("|---|" + "---|---|" * len(checkouts))
    for name in ANSWERS:
        columns = [zip(*seconds[name, checkout], strict=True) for checkout in checkouts]
        cells = [f" {statistics.median(values):.2f} |" for column in columns for values in column]
        print(f"| {name} |" + "".join(cells))


if __name__ == "__main__":
    main()
