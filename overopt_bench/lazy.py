"""Packages that are imported when they are first used, so that a command line that needs none of them answers at once.

``from overopt_bench.lazy import torch`` stands in the modules that say what exists and what it takes: they are read
before anybody knows whether anything will be computed. Everywhere else ``import torch`` does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
else:

    class _Later:
        """A package by its name; whatever is asked of it is asked of the package, which is imported by then."""

        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._name), name)

    torch = _Later("torch")
