"""What a terminal shows while a report is made; files and pipes see nothing of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")


def track(things: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield the things one by one, with a bar on stderr of how many of them are done."""
    quiet = not sys.stderr.isatty()
    console = Console(stderr=True)
    yield from progress.track(things, description, total=total, console=console, transient=True, disable=quiet)
