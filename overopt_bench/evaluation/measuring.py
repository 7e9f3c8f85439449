"""Asking metrics: which there are, in which order, and what becomes of an answer that is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.registry import is_foreign, metrics
from overopt_bench.types import Evaluation, Metric, Number, Suite

if TYPE_CHECKING:
    from torch import Tensor


def load_metrics() -> list[Metric]:
    """Make one instance of every registered metric, in the order of the record: this package's own first.

    Raises:
        UserError: where none is registered, or one of somebody else cannot be made.
    """
    classes = metrics.in_order()
    if not classes:
        why = "; ".join(f"{name} does not import: {reason}" for name, reason in metrics.broken.items())
        raise UserError(f"no metric is registered: {why or 'run `pip install -e .` in the checkout first'}")
    return [_made(cls) for cls in classes]


def _made(cls: type[Metric]) -> Metric:
    if not (isinstance(cls.numbers, tuple) and all(isinstance(number, Number) for number in cls.numbers)):
        raise UserError(f"metric {cls.name!r}: `numbers` must be a tuple of overopt_bench.types.Number")
    try:
        return cls()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # a stranger's code may raise anything
        raise UserError(f"metric {cls.name!r} cannot be made: {type(error).__name__}: {error}") from error


def summary(key: str, values: Tensor, prompts: Sequence[str]) -> dict[str, float]:
    """Give mean, standard error and count of values, under ``key``.

    Args:
        key: what the names of the three begin with.
        values: of the images ``[B]``.
        prompts: of each image.

    Returns:
        ``/mean`` over images; ``/stderr`` over prompts, since images of one prompt are not independent: the standard error
        of the mean of the prompts' means, or with a single prompt that over its images, and 0 of a single image;
        ``/count``, the number of images.
    """
    from overopt_bench.evaluation.clusters import standard_error, units  # numpy, which a refusal does not wait for

    each = units(values.double().cpu().numpy(), prompts)
    error = standard_error(each) if len(each) > 1 else 0.0
    return {f"{key}/mean": values.mean().item(), f"{key}/stderr": error, f"{key}/count": len(values)}


def measure(seen: Evaluation, asked: Iterable[Metric]) -> dict[str, float | None]:
    """Ask each metric about one evaluation.

    Returns:
        The numbers, named ``<split>/<number>``, in the order of the metrics.

    Raises:
        FloatingPointError: where a metric raises an error, or gives something that is not finite, of a wrong type,
            under a name that it did not declare or that another one has taken; it names the metric.
    """
    row: dict[str, float | None] = {}
    for metric in asked:
        what = f"metric {metric.name!r}"
        try:
            found = metric(seen)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # a stranger's code may raise anything
            raise FloatingPointError(
                f"{what} failed on the split {seen.split!r}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(found, Mapping):
            raise FloatingPointError(f"{what} must give a mapping of names to numbers, not {type(found).__name__}")
        declared = [number.name for number in metric.numbers]
        for name, value in found.items():
            if name not in declared and name not in seen.scores:
                raise FloatingPointError(
                    f"{what} gave {name!r}, which is none of its `numbers`: {', '.join(declared) or 'it has none'}"
                )
            new = _recorded(f"{seen.split}/{name}", value, seen.prompts, what)
            if taken := new.keys() & row.keys():
                raise FloatingPointError(f"{what} gave {name!r}, but {min(taken)!r} is recorded already")
            row |= new
    return row


def _recorded(key: str, value: object, prompts: Sequence[str], what: str) -> dict[str, float | None]:
    """One number as the record has it."""
    if value is None:
        return {key: None}
    images = len(prompts)
    if isinstance(value, torch.Tensor):
        if value.shape != (images,) or not value.is_floating_point():
            raise FloatingPointError(
                f"{what} gave {key!r} as {value.dtype} of shape {tuple(value.shape)}; it must be a float, or a tensor of"
                f" {images} floats, one for each image"
            )
        if not bool(value.isfinite().all()):
            bad = int((~value.isfinite()).sum())
            raise FloatingPointError(f"{what} gave {key!r} values that are not finite for {bad} of {images} images")
        return dict(summary(key, value, prompts))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FloatingPointError(
            f"{what} gave {key!r} as {type(value).__name__}; it must be a float or a tensor of floats"
        )
    if not math.isfinite(value):
        raise FloatingPointError(f"{what} gave {value} for {key!r}; it must be finite, or None where it has no value")
    return {key: value}


def probe_foreign_metrics(suite: Suite, rewards: Iterable[str], prompts: Sequence[str], num_steps: int) -> None:
    """Try each metric that is not part of this package on random images, before a run writes anything.

    They see two images of each of two prompts with random scores, once with a random KL and once without.

    Args:
        suite: whose image size the real images will have, and whose CLIP gives their features.
        rewards: names of the rewards that will be evaluated.
        prompts: some that the run will have.
        num_steps: T.

    Raises:
        UserError: where one fails or gives something that cannot be recorded.
    """
    if not any(is_foreign(cls) for cls in metrics.in_order()):
        return
    generator = torch.Generator().manual_seed(0)
    known = load_metrics()
    shown = tuple(prompt for prompt in (*prompts, *prompts)[:2] for _ in range(2))
    images = torch.rand(4, 3, suite.image_size, suite.image_size, generator=generator)
    scores = {name: torch.randn(4, generator=generator) for name in rewards}
    with torch.no_grad():
        for kl in (torch.rand(4, num_steps, generator=generator), None):
            seen = Evaluation("train", shown, images, scores, kl, suite.clip_features)
            try:
                measure(seen, known)
            except FloatingPointError as error:
                raise UserError(f"{error} (tried on random images, {'without' if kl is None else 'with'} KL)") from None
