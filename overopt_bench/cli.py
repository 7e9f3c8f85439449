"""The ``overopt-bench`` command: the functions of ``api.py``, with errors as one line and an exit status.

Exit status: 0 done, 1 a run failed, 2 the input was wrong, 75 a run was interrupted and saved, 130 Ctrl-C where there was
nothing to save. After 75 the last line is the command that goes on. ``accelerate launch`` and ``torchrun`` make 1 of whatever
is not 0.
``OVEROPT_BENCH_DEBUG=1`` shows tracebacks.
"""

from __future__ import annotations

import inspect
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import GenericAlias
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel

from overopt_bench import api
from overopt_bench.commands.command import fields, must_be_given, request_of, summary_of
from overopt_bench.errors import BAD_INPUT, FAILED, INTERRUPTED, RunError, Stopped, UserError
from overopt_bench.options import command_line_name, describe, note

EPILOG = (
    "Exit status: 0 done, 1 a run failed, 2 the input was wrong (trying again does not help), 75 interrupted and saved"
    " (the same command goes on), 130 Ctrl-C where there was nothing to save. A run that is stopped is saved within ten"
    " seconds, and its last line is the command that goes on."
)
app = typer.Typer(
    name="overopt-bench", help="Reward overoptimization in text-to-image diffusion.", epilog=EPILOG, add_completion=False,
    pretty_exceptions_enable=False, rich_markup_mode=None,
)  # fmt: skip
COMMANDS: tuple[Callable[..., Any], ...] = (
    api.run,
    api.report,
    api.compare,
    api.list,
    api.sweep,
    api.eval,
    api.sample,
    api.score,
    api.ceiling,
    api.bench,
    api.doctor,
)


def parameters(model: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """Yield the fields of a command's model as typer's parameters, each None where nothing is given."""
    for name, field in fields(model):
        kind, needed, flag = _kind(field.annotation), must_be_given(field), command_line_name(name)
        shown: dict[str, Any] = {"metavar": note(field, "metavar"), "help": describe(field), "show_default": False}
        if note(field, "argument"):
            default = typer.Argument(... if needed else None, **shown)
        else:
            either = kind is bool and field.default is None  # a switch that may be on, off or not given
            switch = f"{flag}/{command_line_name('no_' + name)}" if either else flag
            default = typer.Option(... if needed else None, switch, **shown)
        annotation = kind if needed else kind | None
        yield inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kind(annotation: Any) -> Any:
    """Return the type by which typer reads a field: one that may be repeated is a list, a choice is text."""
    inner = get_args(annotation)
    if type(None) in inner:
        return _kind(next(kind for kind in inner if kind is not type(None)))
    if get_origin(annotation) is Literal:
        return str
    return GenericAlias(list, inner[:1]) if inner else annotation


def typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command as a function with the signature that typer reads."""

    def call(**given: Any) -> Any:
        return function(**given)

    signature = inspect.Signature([*parameters(request_of(function))])
    annotations = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    vars(call).update(__signature__=signature)
    call.__annotations__ = annotations
    return call


for function in COMMANDS:
    app.command(function.__name__, help=summary_of(function))(typed(function))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        result = app(args=arguments, prog_name="overopt-bench", standalone_mode=False)
    except Stopped:
        return INTERRUPTED
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
        message, status = error.format_message(), BAD_INPUT
    elif isinstance(error, UserError):
        message, status = str(error), BAD_INPUT
    elif isinstance(error, RunError):
        message, status = str(error), FAILED
    else:
        message, status = f"{type(error).__name__}: {error} (OVEROPT_BENCH_DEBUG=1 shows where)", FAILED
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status
