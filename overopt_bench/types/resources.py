"""What rewards are loaded from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar, cast

from overopt_bench.weights import Weights

P = ParamSpec("P")
T = TypeVar("T")


class Resources:
    """The weights that one suite's rewards and encoders are read from, and what of them is loaded already.

    A suite has one (``Suite.resources``), which ``Reward.load`` gets: two rewards on the same CLIP hold it once, and an
    ensemble holds the reward that a run evaluates beside it.

    Attributes:
        family: the name under which the suite's rewards are registered.
        weights: finds the files of Hub repositories.
        asset: finds a file that the suite itself brings by its path there; a UserError says where it is missing.
    """

    def __init__(self, family: str, weights: Weights, asset: Callable[[str], Path]) -> None:
        self.family, self.weights, self.asset = family, weights, asset
        self._loaded: dict[object, object] = {}

    def once(self, load: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Give ``load(*args, **kwargs)``, called the first time only; later calls get the same object.

        Args:
            load: a function that can be hashed, such as one of a module; a new lambda each time would load each time.
            args: hashable, as are the values of ``kwargs``.
        """
        key = (load, args, tuple(sorted(kwargs.items())))
        if key not in self._loaded:
            self._loaded[key] = load(*args, **kwargs)
        return cast(T, self._loaded[key])
