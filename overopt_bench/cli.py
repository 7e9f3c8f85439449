"""The ``overopt-bench`` command: the functions of ``api.py``, with errors as one line and an exit status.

Exit status: 0 done, 1 a run failed, 2 the input was wrong, 129 stopped by a hangup, 130 by Ctrl-C, 143 by SIGTERM; after a
stop the last line is the command that goes on. ``accelerate launch`` and ``torchrun`` make 1 of whatever is not 0.
``OVEROPT_BENCH_DEBUG=1`` shows tracebacks.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from overopt_bench import api
from overopt_bench.errors import RunError, Stopped, UserError

EPILOG = (
    "Exit status: 0 done, 1 a run failed, 2 the input was wrong, 129 stopped by a hangup, 130 by Ctrl-C, 143 by SIGTERM."
    " A run that is stopped is saved within ten seconds, and its last line is the command that goes on."
)
app = typer.Typer(
    name="overopt-bench", help="Reward overoptimization in text-to-image diffusion.", epilog=EPILOG, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
COMMANDS: tuple[Callable[..., Any], ...] = (
    api.run,
    api.report,
    api.list,
    api.sweep,
    api.eval,
    api.sample,
    api.score,
    api.bench,
    api.doctor,
)
for command in COMMANDS:
    app.command()(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(args=arguments, prog_name="overopt-bench", standalone_mode=False)
    except Stopped as stopped:
        return 128 + stopped.number
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if os.environ.get("OVEROPT_BENCH_DEBUG"):
            raise
        return _explain(error)
    return result if isinstance(result, int) else 0


def _explain(error: Exception) -> int:
    """Print an error as one line on stderr and return the exit status that belongs to it."""
    if hasattr(error, "format_message"):  # typer's own: a wrong type, an option that does not exist
        message, status = error.format_message(), 2
    elif isinstance(error, UserError):
        message, status = str(error), 2
    elif isinstance(error, RunError):
        message, status = str(error), 1
    else:
        message, status = f"{type(error).__name__}: {error} (OVEROPT_BENCH_DEBUG=1 shows where)", 1
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status
