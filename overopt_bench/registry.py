"""Which algorithms, rewards and suites exist.

Built-ins and installed packages announce themselves by entry points, which are loaded on first use; the
decorators below put the classes in. A single file can be added with ``--plugin`` (see ``plugins.py``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from overopt_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    from overopt_bench.types import Algorithm, Reward, Suite

T = TypeVar("T")
AlgorithmClass = TypeVar("AlgorithmClass", bound="type[Algorithm]")
RewardClass = TypeVar("RewardClass", bound="type[Reward]")
SuiteClass = TypeVar("SuiteClass", bound="type[Suite]")


class Registry(Generic[T]):
    """Classes by name, and for rewards by suite: one name may stand for another class in each suite.

    Args:
        kind: "algorithm", "reward" or "suite"; for messages, and the plural's entry-point group.
        base: name of the base class in ``overopt_bench.types``, which is imported only when needed (it needs torch).
    """

    def __init__(self, kind: str, base: str) -> None:
        self.kind, self._base = kind, base
        self._classes: dict[tuple[str | None, str], type[T]] = {}
        self.derived: dict[str, tuple[Callable[[str, str | None], type[T]], str]] = {}
        self._loaded = False
        self.broken: dict[str, str] = {}

    def add(self, cls: type[T], suite: str | None = None) -> None:
        """Put a class in, for one suite or for all.

        Raises:
            UserError: where it is not a subclass of the kind's base, has no name, or the name is taken.
        """
        base = getattr(importlib.import_module("overopt_bench.types"), self._base)
        where = f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"
        if not (isinstance(cls, type) and issubclass(cls, base)):
            raise UserError(
                f"{where} is registered as {self.kind} but is no subclass of overopt_bench.types.{self._base}"
            )
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"{where} needs a class attribute `name`, a word such as 'my_{self.kind}'; it is {name!r}")
        taken = self._classes.get((suite, name))
        if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"{where}: the {self.kind} {name!r} exists already, as {taken.__module__}.{taken.__qualname__}"
            )
        self._classes[suite, name] = cls

    def load(self) -> None:
        """Import all entry points once. One that fails is noted in ``broken`` and hurts nobody else."""
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=f"overopt_bench.{self.kind}s"):
            try:
                found = point.load()  # a module whose decorators register, or a class
                if isinstance(found, type) and found not in self._classes.values():
                    self.add(found)
            except Exception as error:  # somebody else's package may raise anything
                self.broken[point.name] = " ".join(f"{type(error).__name__}: {error}".split())

    def classes(self) -> dict[tuple[str | None, str], type[T]]:
        """Everything by (suite or None, name)."""
        self.load()
        return dict(self._classes)

    def names(self, suite: str | None = None) -> list[str]:
        """Sorted names: those of all suites, and those of ``suite`` where one is given."""
        return sorted({name for owner, name in self.classes() if owner in (None, suite)})

    def get(self, name: str, suite: str | None = None) -> type[T]:
        """The class of that name, the suite's own before one for all suites.

        Raises:
            UserError: where there is none; names the nearest and all.
        """
        classes = self.classes()
        prefix, colon, rest = name.partition(":")
        if colon and prefix in self.derived:
            return self.derived[prefix][0](rest, suite)
        found = classes.get((suite, name)) or classes.get((None, name))
        if found is not None:
            return found
        if not classes and not self.broken:
            raise UserError(f"no {self.kind} is registered: run `pip install -e .` in the checkout first")
        if name in self.broken:
            raise UserError(f"the {self.kind} {name!r} does not import: {self.broken[name]}")
        elsewhere = sorted({owner for owner, other in classes if other == name and owner})
        if elsewhere:
            raise UserError(
                f"the {self.kind} {name!r} is not in the suite {suite!r} but in {', '.join(elsewhere)};"
                f" allowed: {', '.join(self.names(suite))}"
            )
        error = unknown_name(self.kind, name, self.names(suite))
        if self.broken:
            error = UserError(f"{error}; these do not import: {', '.join(self.broken)} (`overopt-bench list` says why)")
        raise error


algorithms: Registry[Algorithm] = Registry("algorithm", "Algorithm")
rewards: Registry[Reward] = Registry("reward", "Reward")
suites: Registry[Suite] = Registry("suite", "Suite")


def register_algorithm(cls: AlgorithmClass) -> AlgorithmClass:
    """Class decorator: make an ``Algorithm`` known by its ``name``."""
    algorithms.add(cls)
    return cls


@overload
def register_reward(cls: RewardClass) -> RewardClass: ...
@overload
def register_reward(*, suite: str) -> Callable[[RewardClass], RewardClass]: ...
def register_reward(
    cls: RewardClass | None = None, *, suite: str | None = None
) -> RewardClass | Callable[[RewardClass], RewardClass]:
    """Class decorator: make a ``Reward`` known by its ``name``, in all suites or in the one named."""

    def add(cls: RewardClass) -> RewardClass:
        rewards.add(cls, suite)
        return cls

    return add if cls is None else add(cls)


def register_derived_reward(
    prefix: str, derive: Callable[[str, str | None], type[Reward]], summary: str
) -> None:  # fmt: skip
    """Make ``prefix:TEXT`` the name of the reward class that ``derive(TEXT, family)`` gives."""
    rewards.derived[prefix] = (derive, summary)


def register_suite(cls: SuiteClass) -> SuiteClass:
    """Class decorator: make a ``Suite`` known by its ``name``."""
    suites.add(cls)
    return cls


def get_reward(name: str, suite: Suite) -> Reward:
    """The reward of that name, loaded for a suite.

    Raises:
        UserError: where the suite has no such reward, or its weights are missing.
    """
    return rewards.get(name, suite.family()).load(suite)


def evaluated_rewards(suite: Suite, proxy: str, gold: Iterable[str]) -> list[str]:
    """What a run evaluates: its proxy, its golds, and all others of a suite with ``all_rewards``."""
    return list(dict.fromkeys([proxy, *gold, *(rewards.names(suite.family()) if suite.all_rewards else ())]))


def get_suite(name: str, weights: Path | None = None, model: str | None = None) -> Suite:
    """A suite by name; whether it can run here is ``missing()``'s to say.

    Args:
        weights: a folder to read weights from. model: for suites that take one.

    Raises:
        UserError: for a model where none is taken.
    """
    cls = suites.get(name)
    if model is not None and not cls.takes_model():
        able = [other for other in suites.names() if suites.get(other).takes_model()]
        raise UserError(f"the suite {name!r} has its own model; --model goes with --suite {' or '.join(able)}")
    return cls(weights, model)
