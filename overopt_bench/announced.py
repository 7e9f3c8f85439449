"""What packages announce by entry points, and their loading.

An entry point that names a class is called as the class is, ``NAME``, or ``SUITE.NAME`` for a reward of one suite: it says
what exists before anything is imported, and is loaded when that class is asked for. One that names a module, whose
decorators may register anything, is loaded before the first question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points

Key = tuple[str | None, str]  # the suite that a class is for, or None, and its name


class Announced:
    """The entry points of one group, each loaded once.

    Args:
        group: of the entry points, such as "overopt_bench.rewards".
        take: what is done with the class that an entry point names, and what it promised; may raise anything.

    Attributes:
        broken: why some do not import, by the entry point's name.
    """

    def __init__(self, group: str, take: Callable[[type, Key], None]) -> None:
        self._group, self._take = group, take
        self._loaded: set[str] = set()
        self.broken: dict[str, str] = {}

    @cached_property
    def _points(self) -> tuple[EntryPoint, ...]:
        return tuple(entry_points(group=self._group))

    @cached_property
    def _promises(self) -> dict[Key, EntryPoint]:
        return {promise(point.name): point for point in self._points if point.attr}

    def promised(self) -> set[Key]:
        """List the classes that are announced and not known to be broken; the modules are loaded."""
        self._load(point for point in self._points if not point.attr)
        return {key for key, point in self._promises.items() if point.name not in self.broken}

    def load(self, key: Key) -> None:
        """Import the class that was promised so, and all modules."""
        self._load(point for point in self._points if not point.attr or point is self._promises.get(key))

    def load_all(self) -> None:
        """Import everything."""
        self._load(self._points)

    def _load(self, points: Iterable[EntryPoint]) -> None:
        """Import entry points. One that fails is noted in ``broken`` and hurts nobody else."""
        for point in points:
            if point.name in self._loaded:
                continue
            self._loaded.add(point.name)
            try:
                found = point.load()
                if point.attr:
                    self._take(found, promise(point.name))
            except Exception as error:  # somebody else's package may raise anything
                self.broken[point.name] = " ".join(f"{type(error).__name__}: {error}".split())


def promise(point: str) -> Key:
    """Read what an entry point's name promises: ``NAME`` in every suite, or ``SUITE.NAME``."""
    suite, dot, name = point.rpartition(".")
    return (suite if dot else None), name
