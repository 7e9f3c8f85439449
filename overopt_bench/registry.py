"""Which algorithms, mitigations, rewards, suites and metrics exist.

Built-ins and installed packages announce themselves by entry points (see ``announced.py``), which are loaded when they
are asked for; the decorators below put the classes in. A single file can be added with ``--plugin`` (see ``plugins.py``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from overopt_bench.announced import Announced, Key
from overopt_bench.derived import derive, parse_settings
from overopt_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    from overopt_bench.types import (
        Algorithm,
        DerivedReward,
        Metric,
        Mitigation,
        Resources,
        Reward,
        Suite,
    )

T = TypeVar("T")
AlgorithmClass = TypeVar("AlgorithmClass", bound="type[Algorithm]")
MitigationClass = TypeVar("MitigationClass", bound="type[Mitigation]")
RewardClass = TypeVar("RewardClass", bound="type[Reward]")
DerivedClass = TypeVar("DerivedClass", bound="type[DerivedReward]")
SuiteClass = TypeVar("SuiteClass", bound="type[Suite]")
MetricClass = TypeVar("MetricClass", bound="type[Metric]")


def is_foreign(cls: type) -> bool:
    """Say whether a class is somebody else's: of a plugin or of another package."""
    return not cls.__module__.startswith("overopt_bench.")


def _checked_word(cls: type, base: type, what: str, attribute: str, taken: Callable[[str], type | None]) -> str:
    """Return the word under which a class wants to be known.

    Args:
        cls: the class.
        base: what it must be a subclass of.
        what: what it is registered as, for messages.
        attribute: its attribute that holds the word.
        taken: gives the class that has a word already, or None.

    Raises:
        UserError: where it is no such class, has no word, or another class has it.
    """
    where = f"{getattr(cls, '__module__', '?')}.{getattr(cls, '__qualname__', cls)}"
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{where} is registered as {what} but is no subclass of overopt_bench.types.{base.__name__}")
    word = getattr(cls, attribute, None)
    if not isinstance(word, str) or not word.isidentifier():
        example = f"my_{what.split()[0]}"
        raise UserError(f"{where} needs a class attribute `{attribute}`, a word such as {example!r}; it is {word!r}")
    other = taken(word)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise UserError(f"{where}: the {what} {word!r} exists already, as {other.__module__}.{other.__qualname__}")
    return word


class Registry(Generic[T]):
    """Classes by name, and for rewards by suite: one name may stand for another class in each suite.

    Args:
        kind: "algorithm", "mitigation", "reward", "suite" or "metric"; for messages, and the plural's entry-point group.
        base: name of the base class in ``overopt_bench.types``, which is imported only when needed (it needs torch).
    """

    def __init__(self, kind: str, base: str) -> None:
        self.kind, self._base = kind, base
        self._classes: dict[Key, type[T]] = {}
        self._announced = Announced(f"overopt_bench.{kind}s", self._take)
        self.broken = self._announced.broken

    def add(self, cls: type[T], suite: str | None = None) -> None:
        """Put a class in, for one suite or for all.

        Raises:
            UserError: where it is not a subclass of the kind's base, has no name, or the name is taken.
        """
        base = getattr(importlib.import_module("overopt_bench.types"), self._base)
        name = _checked_word(cls, base, self.kind, "name", lambda word: self._classes.get((suite, word)))
        self._classes[suite, name] = cls

    def _take(self, cls: type[T], promised: Key) -> None:
        """Take a class from its entry point; mostly its decorator has registered it already."""
        if cls not in self._classes.values():
            self.add(cls, promised[0])
        if self._classes.get(promised) is not cls:
            raise UserError(
                f"it is announced as {'.'.join(filter(None, promised))}, its name is {getattr(cls, 'name', None)}"
            )

    def classes(self) -> dict[Key, type[T]]:
        """Everything by (suite or None, name)."""
        self._announced.load_all()
        return dict(self._classes)

    def known(self) -> set[Key]:
        """List what there is, without importing the classes that entry points announce."""
        return self._announced.promised() | self._classes.keys()

    def names(self, suite: str | None = None) -> list[str]:
        """Sorted names: those of all suites, and those of ``suite`` where one is given."""
        return sorted({name for owner, name in self.classes() if owner in (None, suite)})

    def in_order(self) -> list[type[T]]:
        """List every class: this package's own as they were registered, then all others by name."""
        classes = self.classes().items()
        own = [cls for _, cls in classes if not is_foreign(cls)]
        return own + [cls for _, cls in sorted(classes, key=lambda item: item[0][1]) if is_foreign(cls)]

    def get(self, name: str, suite: str | None = None) -> type[T]:
        """The class of that name, the suite's own before one for all suites.

        Raises:
            UserError: where there is none; names the nearest and all.
        """
        for key in ((suite, name), (None, name)):
            self._announced.load(key)
            if key in self._classes:
                return self._classes[key]
        known = self.known()
        if not known and not self.broken:
            raise UserError(f"no {self.kind} is registered: run `pip install -e .` in the checkout first")
        for point in (f"{suite}.{name}", name):
            if point in self.broken:
                raise UserError(f"the {self.kind} {name!r} does not import: {self.broken[point]}")
        allowed = sorted({other for owner, other in known if owner in (None, suite)})
        elsewhere = sorted({owner for owner, other in known if other == name and owner})
        if elsewhere:
            raise UserError(
                f"the {self.kind} {name!r} is not in the suite {suite!r} but in {', '.join(elsewhere)};"
                f" allowed: {', '.join(allowed)}"
            )
        error = unknown_name(self.kind, name, allowed)
        if self.broken:
            error = UserError(f"{error}; these do not import: {', '.join(self.broken)} (`overopt-bench list` says why)")
        raise error


class RewardRegistry(Registry["Reward"]):
    """Rewards by name, and kinds of rewards that are made of others, ``KIND[@PARAMETER=VALUE ...]:A+B[+...]``."""

    def __init__(self) -> None:
        super().__init__("reward", "Reward")
        self._kinds: dict[str, type[DerivedReward]] = {}

    def add_kind(self, cls: type[DerivedReward]) -> None:
        """Put a kind in.

        Raises:
            UserError: where it is no ``DerivedReward``, has no word for itself, or the word is taken.
        """
        from overopt_bench.types import DerivedReward

        kind = _checked_word(cls, DerivedReward, "kind of rewards", "kind", self._kinds.get)
        self._kinds[kind] = cls

    def kinds(self) -> dict[str, type[DerivedReward]]:
        """Give every kind of derived rewards by its word."""
        self._announced.promised()
        return dict(self._kinds)

    def canonical(self, name: str, suite: str) -> str:
        """Give the name by which a reward is recorded; imports none of those that an entry point announces.

        Raises:
            UserError: as ``get``.
        """
        plain = ":" not in name and self.known() & {(suite, name), (None, name)}
        return name if plain else self.get(name, suite).name

    def get(self, name: str, suite: str | None = None) -> type[Reward]:
        """Find the class of that name; that of a derived reward is made here.

        Raises:
            UserError: where there is none, or a parameter of a derived reward does not exist or is out of range.
        """
        head, colon, text = name.partition(":")
        kinds = self.kinds()
        if not colon or not kinds:
            return super().get(name, suite)
        kind, *settings = head.strip().split("@")
        if kind not in kinds:
            raise unknown_name("reward of the kind", kind, kinds)
        params = parse_settings(kind, kinds[kind].Params, settings)
        members = tuple(part.strip() for part in text.split("+"))
        if len(members) < 2 or len(set(members)) < len(members):
            raise UserError(f"{kind}:{text} needs two or more different rewards, such as {kind}:aesthetic+pickscore")
        if any(":" in member for member in members):
            raise UserError(f"{kind}:{text}: an ensemble's members are plain rewards")
        return derive(kinds[kind], params, members, [self.get(member, suite) for member in members])


algorithms: Registry[Algorithm] = Registry("algorithm", "Algorithm")
rewards = RewardRegistry()
mitigations: Registry[Mitigation] = Registry("mitigation", "Mitigation")
suites: Registry[Suite] = Registry("suite", "Suite")
metrics: Registry[Metric] = Registry("metric", "Metric")


def register_algorithm(cls: AlgorithmClass) -> AlgorithmClass:
    """Class decorator: make an ``Algorithm`` known by its ``name``."""
    algorithms.add(cls)
    return cls


def register_mitigation(cls: MitigationClass) -> MitigationClass:
    """Make a ``Mitigation`` known by its ``name``; a class decorator."""
    mitigations.add(cls)
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


def register_derived_reward(cls: DerivedClass) -> DerivedClass:
    """Class decorator: make a ``DerivedReward`` known by its ``kind``, as ``kind:a+b`` in every suite."""
    rewards.add_kind(cls)
    return cls


def register_suite(cls: SuiteClass) -> SuiteClass:
    """Class decorator: make a ``Suite`` known by its ``name``."""
    suites.add(cls)
    return cls


def register_metric(cls: MetricClass) -> MetricClass:
    """Class decorator: make a ``Metric`` known by its ``name``; every evaluation asks it from then on."""
    metrics.add(cls)
    return cls


def get_reward(name: str, suite: Suite) -> Reward:
    """Load the reward of that name, once for a suite: later calls with the same suite give the same object.

    Raises:
        UserError: where the suite has no such reward, or its weights are missing.
    """
    return load_reward(name, suite.resources)


def load_reward(name: str, resources: Resources) -> Reward:
    """Load a reward as ``get_reward`` does, for one that is made of others and has the suite's resources, not the suite."""
    cls = rewards.get(name, resources.family)
    return resources.keep(("reward", cls.name), lambda: cls.load(resources))


def evaluated_rewards(suite: Suite, proxy: str, gold: Iterable[str]) -> list[str]:
    """List what a run evaluates: its proxy, its golds, and all others of a suite with ``all_rewards``."""
    return list(dict.fromkeys([proxy, *gold, *(rewards.names(suite.family()) if suite.all_rewards else ())]))


def get_suite(name: str, weights: Path | None = None, model: str | None = None) -> Suite:
    """Make a suite by its name; whether it can run here is ``missing()``'s to say.

    Args:
        name: in the registry.
        weights: a folder to read weights from instead of the usual places.
        model: the base model, for suites that take one.

    Raises:
        UserError: for a model where none is taken.
    """
    cls = suites.get(name)
    if model is not None and not cls.takes_model():
        takers = [other for other in suites.names() if suites.get(other).takes_model()]
        raise UserError(f"the suite {name!r} has its own model; --model goes with --suite {' or '.join(takers)}")
    return cls(weights, model)
