"""One run from a user's options; what ``sweep`` shares with ``run``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from overopt_bench.commands.command import Arguments
from overopt_bench.commands.requests import Recording
from overopt_bench.commands.settings import Options, probe, read_options
from overopt_bench.config import RunConfig, warnings
from overopt_bench.recording.identity import refuse_another_configuration


def run_one(arguments: Arguments) -> Path:
    """Check a user's options, then train or resume. Returns the run folder.

    Raises:
        UserError: before anything is written, for whatever is wrong.
        RunError: where the run cannot be finished.
    """
    options, given = read_options(arguments), arguments.given
    config = options.config(given.get("algo"), given.get("proxy"), given.get("seed"))
    recording = arguments.make(Recording)
    refuse_another_configuration(config.folder(recording.out), config)
    announce(options, [config])
    probe(config, options.runtime)
    return start(config, options, recording)


def announce(options: Options, configs: Sequence[RunConfig]) -> None:
    """Print which suite and why, and warnings to stderr; among several processes the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"suite {options.given['suite']}: {options.suite_reason}", flush=True)
    for line in dict.fromkeys([*options.notes, *(line for config in configs for line in warnings(config))]):
        print("warning:", line, file=sys.stderr, flush=True)


def start(config: RunConfig, options: Options, recording: Recording) -> Path:
    """Train or resume one run. Returns the run folder.

    Raises:
        RunError: where the run cannot be finished.
    """
    from overopt_bench.training import loop as train

    return train.run(
        config, out=recording.out, runtime=options.runtime_for(config.algo), plugins=options.plugins,
        tracker=recording.tracker, take_over=recording.take_over,
    )  # fmt: skip
