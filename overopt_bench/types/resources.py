"""What rewards are loaded from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from overopt_bench.errors import UserError
from overopt_bench.weights import Weights

P = ParamSpec("P")
T = TypeVar("T")


class Resources:
    """The weights that one suite's rewards and encoders are read from, and what of them is loaded already.

    A suite has one (``Suite.resources``), which ``Reward.load`` gets: two rewards on the same CLIP hold it once, and an
    ensemble holds the reward that a run evaluates beside it.

    Args:
        family: the name under which the suite's rewards are registered.
        weights: finds the files of Hub repositories.
        folder: of the files that the suite itself brings; None where it brings none.
        remedy: what to do where one of those is missing.
    """

    def __init__(self, family: str, weights: Weights, folder: Path | None = None, remedy: str = "reinstall") -> None:
        self.family, self.weights, self.folder, self._remedy = family, weights, folder, remedy
        self._loaded: dict[Hashable, object] = {}

    def asset(self, name: str) -> Path:
        """Find a file that the suite itself brings, by its path in the suite's folder.

        Raises:
            UserError: where it is missing.
        """
        if self.folder is None:
            raise UserError(f"the {self.family} suite brings no files, so there is no {name}")
        path = self.folder / name
        if not path.exists():
            raise UserError(f"the {self.family} suite lacks {path}; {self._remedy}")
        return path

    def once(self, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Give ``load(*args, **kwargs)``, called the first time only; later calls get the same object.

        Args:
            load: a function that can be hashed, such as one of a module; a new lambda each time would load each time.
            *args: hashable values.
            **kwargs: hashable values.
        """
        return self.keep((load, args, tuple(sorted(kwargs.items()))), lambda: load(*args, **kwargs))

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """Give ``make()``, called the first time only for this key, which stands for objects of one type."""
        if key not in self._loaded:
            self._loaded[key] = make()
        return cast(T, self._loaded[key])
