"""Errors that are for people: one line saying what was wrong, what is allowed and what to do next."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 75  # exit statuses; 75 is EX_TEMPFAIL of sysexits.h


class UserError(Exception):
    """A mistake that the user can correct. The command line prints its one line and exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist: the nearest match, if any is near, and all that do exist."""
    names = sorted(allowed)
    return UserError(f"there is no {kind} {name!r};{_nearest(name, names)} allowed: {', '.join(names) or 'none'}")


def _nearest(name: str, allowed: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" did you mean {near[0]!r}?" if near else ""


def explain(error: ValidationError, what: str, allowed: Iterable[str]) -> UserError:
    """Turn a pydantic error into one readable line.

    Args:
        error: all that is wrong with the values.
        what: whose parameters they are; it opens each part.
        allowed: the names that exist.
    """
    parts = []
    for item in error.errors():
        name = ".".join(str(x) for x in item["loc"]) or "value"
        if item["type"] == "extra_forbidden":
            parts.append(str(unknown_name(f"{what} parameter".strip(), name, allowed)))
        elif item["type"] == "missing":
            parts.append(f"{what} {name} is required".strip())
        else:
            message = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
            if item["type"] == "literal_error" and isinstance(item["input"], str):
                near = _nearest(item["input"], re.findall("'([^']*)'", item["ctx"]["expected"]))
                message += f";{near}" if near else ""
            parts.append(f"{what} {name}={item['input']!r}: {message}".strip())
    return UserError("; ".join(parts))


class RunError(Exception):
    """A run that started and could not be finished. The command line exits with status 1."""


class DriftError(RunError):
    """The processes of a run hold different weights, so that its state is not worth saving."""


class Stopped(SystemExit):
    """A run was asked to stop, by Ctrl-C or by another signal, and its state is saved.

    It ends a script without a traceback, so that the command that goes on stays the last line. The exit status is
    ``INTERRUPTED`` whichever signal it was, so that a scheduler knows a run to be tried again from a failed one.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(INTERRUPTED)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"
