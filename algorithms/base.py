"""The base model, untouched: the line that every other curve starts from."""

from __future__ import annotations

from typing import Any

from overopt_bench.registry import register_algorithm
from overopt_bench.types import Algorithm, AlgorithmParams


class BaseParams(AlgorithmParams):
    """The parameters of the base model, of which there are none."""


@register_algorithm
class Base(Algorithm):
    """No training and no queries; evaluated at both ends of the budget."""

    name = "base"
    title = "The base model"
    summary = "no training: the reference that all curves start from"
    Params = BaseParams
    role = "stays"

    def step(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
