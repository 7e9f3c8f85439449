"""Reward overoptimization in text-to-image diffusion, measured: proxy against gold under a fixed budget."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "api"]


def __getattr__(name: str) -> Any:
    """``overopt_bench.api``, imported on first use: every command as a Python function."""
    if name == "api":
        return import_module("overopt_bench.api")
    raise AttributeError(f"module 'overopt_bench' has no attribute {name!r}; the commands are in overopt_bench.api")
