"""What ``overopt-bench list`` prints."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from overopt_bench import presets
from overopt_bench.errors import UserError, unknown_name
from overopt_bench.registry import algorithms, metrics, mitigations, rewards, suites
from overopt_bench.types import Algorithm, Reward

KINDS = ("algorithms", "mitigations", "rewards", "metrics", "suites", "presets")


def describe(what: str | None = None) -> str:
    """One block per kind: a line for each entry, and a line for each parameter of an algorithm.

    Presets are shown whole where they are asked for.

    Raises:
        UserError: for another kind than these, or where nothing is registered.
    """
    if what is not None and what not in KINDS:
        raise unknown_name("list of", what, KINDS)
    if not (algorithms.classes() or rewards.classes() or suites.classes()):
        raise UserError("nothing is registered: run `pip install -e .` in the checkout first")
    if what == "presets":
        return "\n\n".join(f"{name}:\n{presets.text(name)}".rstrip() for name in presets.names())
    blocks = {
        "algorithms": _algorithms, "mitigations": _mitigations, "rewards": _rewards, "metrics": _metrics, "suites": _suites,
        "presets": _presets,
    }  # fmt: skip
    return "\n\n".join("\n".join([kind, *blocks[kind]()]) for kind in KINDS if what in (None, kind))


def _algorithms() -> Iterator[str]:
    for name in algorithms.names():
        cls = algorithms.get(name)
        paper = f" [arXiv {cls.paper}]" if cls.paper else ""
        yield f"  {name:<12} {cls.summary}{paper}{'; needs a differentiable proxy' if cls.needs_gradient else ''}"
        yield from _parameters(cls)
    yield from _broken(algorithms.broken)


def _parameters(cls: type[Algorithm]) -> Iterator[str]:
    """Yield name, the paper's default, the values of suites where they differ, meaning and source."""
    settings = {name: suites.get(name).settings(cls.name) for name in suites.names()}
    for name, field in cls.Params.model_fields.items():
        own = "  ".join(f"{suite} {values[name]!r}" for suite, values in settings.items() if name in values)
        yield f"      {name + '=' + repr(field.default):<34}{'  ' + own if own else '':<18}  {field.description or ''}".rstrip()


def _mitigations() -> Iterator[str]:
    for name in mitigations.names():
        cls = mitigations.get(name)
        yield f"  {name:<12} {cls.summary}"
        for parameter, field in cls.Params.model_fields.items():
            default = "" if field.is_required() else f"={field.default!r}"
            yield f"      {parameter + default:<34}  {field.description or ''}{' (required)' if field.is_required() else ''}"
    yield from _broken(mitigations.broken)


def _rewards() -> Iterator[str]:
    for (suite, name), cls in sorted(rewards.classes().items(), key=lambda item: (item[0][0] or "", item[0][1])):
        facts = [
            "all suites" if suite is None else ", ".join(n for n in suites.names() if suites.get(n).family() == suite),
            "differentiable" if cls.differentiable else "not differentiable",
            "reads the prompt" if cls.needs_prompt else "ignores the prompt",
            "has an encoder" if cls.features is not Reward.features else "no encoder (critics use the suite's CLIP)",
        ]
        yield f"  {name:<22} {_first_line(cls)} [{'; '.join(facts)}]"
    for kind, derived in sorted(rewards.kinds().items()):
        yield f"  {kind + ':A+B+...':<22} {_first_line(derived)} [made of any rewards of one suite]"
        for name, field in derived.Params.named_fields().items():
            yield f"      {f'{name}={field.default!r}':<34} {field.description or ''}; as in {kind}@{name}={field.default}:A+B"
    yield from _broken(rewards.broken)


def _metrics() -> Iterator[str]:
    """Yield each metric, then a line for each of its numbers: unit, and which way is up."""
    for cls in metrics.in_order():
        yield f"  {cls.name:<12} {_first_line(cls)}"
        for number in cls.numbers:
            facts = [number.unit, f"{number.better} is better" if number.better else ""]
            yield f"      {number.name:<26} {'; '.join([number.title, *filter(None, facts)])}"
    yield from _broken(metrics.broken)


def _suites() -> Iterator[str]:
    for name in suites.names():
        cls = suites.get(name)
        missing = cls().missing()
        yield f"  {name:<12} {cls.summary}; {'can run here' if missing is None else 'cannot run here: ' + missing}"
        yield f"      gold={cls.gold}  " + "  ".join(f"{k}={v}" for k, v in vars(cls.defaults).items())
    yield from _broken(suites.broken)


def _presets() -> Iterator[str]:
    for name in presets.names():
        yield f"  {name:<12} {presets.summary(name)}"
    yield "  `overopt-bench list presets` shows them whole."


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n")[0]


def _broken(broken: dict[str, str]) -> Iterator[str]:
    for name, reason in broken.items():
        yield f"  {name:<12} does not import: {reason}"
