"""A metric of somebody else: one value for each image, and one for the whole split where there is a KL."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from overopt_bench.registry import register_metric
from overopt_bench.types import Evaluation, Metric, Number


@register_metric
class Sharpness(Metric):
    """Mean absolute difference of neighbouring pixels, and what of it a nat of KL has cost."""

    name = "sharpness"
    title = "Sharpness of the images"
    numbers = (
        Number("sharpness", "Difference of neighbours <b>&</b> $x_1$", "% of the range", "higher"),
        Number("kl_per_sharpness", "Path KL per sharpness", better="lower"),
    )

    def __call__(self, seen: Evaluation) -> Mapping[str, Tensor | float | None]:
        sharpness = 100 * seen.images.diff(dim=-1).abs().mean((1, 2, 3))
        if seen.kl is None:
            return {"sharpness": sharpness, "kl_per_sharpness": None}
        return {
            "sharpness": sharpness,
            "kl_per_sharpness": (seen.kl.sum(1).mean() / sharpness.mean()).item(),
        }
