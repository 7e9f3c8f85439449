"""Commands as functions whose arguments are a model's fields, so that no argument is written twice."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from overopt_bench.errors import explain
from overopt_bench.options import describe, is_option, note

P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Arguments:
    """What a caller gave to a command, by name; what was left out or None is absent."""

    given: Mapping[str, Any]

    def of(self, *models: type[BaseModel]) -> dict[str, Any]:
        """Return what was given of some models' fields, unchecked."""
        names = {name for model in models for name in model.model_fields}
        return {name: value for name, value in self.given.items() if name in names}

    def make(self, model: type[M]) -> M:
        """Return a model with what was given of its fields, and its defaults.

        Raises:
            UserError: for a value out of its range.
        """
        return checked(model, self.of(model))


def checked(model: type[M], values: Mapping[str, Any]) -> M:
    """Return a model of these values.

    Raises:
        UserError: one line for whatever is wrong.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise explain(error, "", model.model_fields) from None


def command(request: Callable[P, BaseModel]) -> Callable[[Callable[[Arguments], R]], Callable[P, R]]:
    """Make a command of a function: its arguments become the fields of a model.

    Type checkers take them from the model's constructor, ``inspect.signature`` and ``help`` from its fields, and the
    command line (``cli.py``) too, so that a new field is an argument everywhere without another edit.

    Args:
        request: the model, a class. Its fields with ``kw_only=False`` may be given by position.
    """
    assert isinstance(request, type) and issubclass(request, BaseModel)
    model: type[BaseModel] = request
    signature = inspect.Signature([*_parameters(model)])

    def decorate(function: Callable[[Arguments], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            return function(Arguments({k: v for k, v in given.items() if v is not None and v != [] and v != ()}))

        lines = [f"    {name}: {describe(field)}" for name, field in fields(model)]
        call.__doc__ = "\n".join([inspect.getdoc(function) or "", "", "Args:", *lines])
        vars(call).update(request=model, summary=inspect.getdoc(function), __signature__=signature)
        return call

    return decorate


def request_of(function: Callable[..., Any]) -> type[BaseModel]:
    """Return the model whose fields are a command's arguments."""
    model: type[BaseModel] = vars(function)["request"]
    return model


def summary_of(function: Callable[..., Any]) -> str:
    """Return what a command's help says before its arguments: its docstring without the list of them."""
    return str(vars(function)["summary"])


def must_be_given(field: FieldInfo) -> bool:
    """Return whether a field has neither a default of its own nor one that is chosen elsewhere (see ``option``)."""
    return field.is_required() and not is_option(field)


def fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """Yield a model's fields in the order of a command's arguments: first those that may be given by position."""
    yield from sorted(model.model_fields.items(), key=lambda item: item[1].kw_only is not False)


def _parameters(model: type[BaseModel]) -> Iterator[inspect.Parameter]:
    """Yield a model's fields as parameters of a Python function."""
    for name, field in fields(model):
        kind = inspect.Parameter.KEYWORD_ONLY if field.kw_only is not False else inspect.Parameter.POSITIONAL_OR_KEYWORD
        chosen_elsewhere = field.is_required() or note(field, "source") is not None
        default = None if chosen_elsewhere else field.get_default(call_default_factory=True)
        default = inspect.Parameter.empty if must_be_given(field) else default
        yield inspect.Parameter(name, kind, default=default, annotation=field.annotation)
