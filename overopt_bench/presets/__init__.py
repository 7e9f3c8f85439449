"""Named settings that ship with the package: YAML files beside this one, every number with its source.

The first line of each is a comment that says in one sentence what the preset is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from typing import Any

import yaml

from overopt_bench.errors import unknown_name

SUFFIX = ".yaml"


def names() -> list[str]:
    """The presets, sorted."""
    files = (f.name for f in resources.files(__name__).iterdir())
    return sorted(f.removesuffix(SUFFIX) for f in files if f.endswith(SUFFIX))


def text(name: str) -> str:
    """A preset as it is written, with its comments.

    Raises:
        UserError: for an unknown name.
    """
    if name not in names():
        raise unknown_name("preset", name, names())
    return resources.files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8")


def summary(name: str) -> str:
    """What a preset is for: the sentence on its first line.

    Raises:
        UserError: for an unknown name.
    """
    return text(name).split("\n", 1)[0].removeprefix("# ")


def read_presets(asked: Iterable[str]) -> dict[str, Any]:
    """The options of presets together, the later over the earlier. Parameters stand under ``algorithms``, by name.

    Raises:
        UserError: for an unknown name.
    """
    options: dict[str, Any] = {}
    for name in asked:
        content = yaml.safe_load(text(name))
        algorithms = options.get("algorithms", {})
        for algo, params in content.pop("algorithms", {}).items():
            algorithms = {**algorithms, algo: {**algorithms.get(algo, {}), **params}}
        options |= {**content, "algorithms": algorithms}
    return options
