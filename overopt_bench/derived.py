"""Rewards that are made of others: what their names say, and the class that a name stands for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from overopt_bench.errors import UserError, explain

if TYPE_CHECKING:
    from overopt_bench.types import DerivedReward, Reward, RewardParams


def parse_settings(kind: str, params: type[RewardParams], settings: Iterable[str]) -> RewardParams:
    """Check the parameters of a derived reward's name.

    Args:
        kind: the kind of the reward, such as "uwo".
        params: the model of its parameters.
        settings: what the name gives, such as "lambda=0.1".

    Raises:
        UserError: for an unknown parameter, one that is given twice, or a value out of range.
    """
    from pydantic import ValidationError

    given: dict[str, str] = {}
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals or not name:
            example = next((f"{kind}@{n}={field.default}" for n, field in params.named_fields().items()), None)
            hint = (
                f"write name=value, such as {example}:aesthetic+pickscore" if example else f"{kind} has no parameters"
            )
            raise UserError(f"{kind}@{setting}: {hint}")
        if name in given:
            raise UserError(f"{kind}@{setting}: {name} is given twice")
        given[name] = value
    try:
        return params.model_validate(given)
    except ValidationError as error:
        raise explain(error, kind, params.named_fields()) from None


def derive(
    base: type[DerivedReward], params: RewardParams, members: tuple[str, ...], classes: Sequence[type[Reward]]
) -> type[Reward]:
    """Make the class of a derived reward.

    Its name is the shortest that gives it, so that equal rewards have equal names.

    Args:
        base: the kind.
        params: the parameters that the name gives.
        members: the names of the rewards that it is made of.
        classes: their classes, in the same order.
    """
    changed = params.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    settings = "".join(f"@{name}={json.dumps(value).removesuffix('.0')}" for name, value in changed.items())
    facts: dict[str, Any] = {
        "name": f"{base.kind}{settings}:{'+'.join(members)}", "params": params, "members": members,
        "__doc__": base.__doc__, "__module__": base.__module__,
        "differentiable": all(c.differentiable for c in classes), "needs_prompt": any(c.needs_prompt for c in classes),
    }  # fmt: skip
    return type(base.__name__, (base,), facts)
