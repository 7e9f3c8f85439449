"""Prompt lists that ship with the package: text files beside this one, one prompt a line."""

from __future__ import annotations

from importlib import resources

from overopt_bench.errors import unknown_name

SUFFIX = ".txt"


def names() -> tuple[str, ...]:
    """The names of the lists, sorted: each is its file's name without the ending."""
    files = (f.name for f in resources.files(__name__).iterdir())
    return tuple(sorted(f.removesuffix(SUFFIX) for f in files if f.endswith(SUFFIX)))


def read_prompts(name: str) -> tuple[str, ...]:
    """The prompts of the list ``name``, in the file's order.

    Raises the error of :func:`overopt_bench.errors.unknown_name` if there is no such list.
    """
    if name not in names():
        raise unknown_name("prompt list", name, names())
    return tuple(resources.files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8").splitlines())
