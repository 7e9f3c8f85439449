"""The metrics of every run: what the rewards say, the distance from the base model, diversity.

They are registered in the order in which the record has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from overopt_bench.registry import register_metric
from overopt_bench.types import Evaluation, Metric, Number

if TYPE_CHECKING:
    from torch import Tensor


@register_metric
class Scores(Metric):
    """Scores of every evaluated reward; the report shows them as proxy and gold."""

    name = "scores"

    def __call__(self, seen: Evaluation) -> Mapping[str, Tensor]:
        return seen.scores


@register_metric
class KL(Metric):
    """Exact KL of the sampled chains to the base model's.

    The last two steps have the smallest noise, so rounding is largest there; the sum without them shows whether the
    result hangs on them. The square root is the abscissa of overoptimization in Gao et al. (2022). Methods that select
    among base samples have no chains; the KL of the images that they keep is another quantity under another name, which
    ``evaluation/selection.py`` records.
    """

    name = "kl"
    title = "Distance from the base model"
    numbers = (
        Number("path_kl", "Path KL to the base model", "nats"),
        Number("path_kl_without_last_two", "Path KL without the last two steps", "nats"),
        Number("sqrt_kl", "Square root of the path KL", "sqrt(nats)"),
        Number("image_kl", "KL of the kept images to the base model's", "nats"),
    )

    def __call__(self, seen: Evaluation) -> Mapping[str, Tensor | float]:
        if seen.kl is None:
            return {}
        path = seen.kl.sum(1)
        return {
            "path_kl": path,
            "path_kl_without_last_two": seen.kl[:, :-2].sum(1),
            "sqrt_kl": path.mean().clamp(min=0).sqrt().item(),
        }


@register_metric
class Diversity(Metric):
    """How unlike each other the images of one prompt are."""

    name = "diversity"
    numbers = (Number("diversity", "Diversity within a prompt", "mean pairwise CLIP cosine distance", "higher"),)

    def __call__(self, seen: Evaluation) -> Mapping[str, float | None]:
        return {"diversity": diversity(seen.features, seen.prompts)}


def diversity(features: Tensor, prompts: Sequence[str]) -> float | None:
    """Average over prompts the mean pairwise cosine distance among the images of one prompt.

    Args:
        features: unit features ``[B, D]``.
        prompts: of each image.

    Returns:
        A value in [0, 2]; None where no prompt has two images.
    """
    values = []
    for prompt in dict.fromkeys(prompts):
        own = features[[k for k, p in enumerate(prompts) if p == prompt]]
        n = len(own)
        if n > 1:
            total = (own @ own.T).sum() - (own * own).sum()
            values.append(1 - (total / (n * (n - 1))).item())
    return sum(values) / len(values) if values else None
