"""Errors that are for people: one line saying what was wrong, what is allowed and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can correct. The command line prints its one line and exits with status 2."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that does not exist: the nearest match, if any is near, and all that do exist."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return UserError(f"there is no {kind} {name!r};{hint} allowed: {', '.join(names) or 'none'}")


class RunError(Exception):
    """A run that started and could not be finished. The command line exits with status 1."""
