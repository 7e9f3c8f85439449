"""What one evaluation of a policy knows, and what makes named numbers of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from torch import Tensor


Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Evaluation:
    """Everything that is known of the B images that were drawn for one prompt split.

    Attributes:
        split: the split's name: "train", or "heldout..." for prompts that nothing was trained on.
        prompts: the prompt of each image; images of one prompt stand beside each other.
        images: ``[B, 3, H, W]`` in [0, 1].
        scores: what each evaluated reward said, ``[B]`` by the reward's name.
        kl: exact KL to the base model of each step ``[B, T]`` in nats; None where it was not measured, which happens in
            every run (only two splits have it), and where a sampler cannot give it.
        encoder: the suite's CLIP, images ``[B, 3, H, W]`` to unit features ``[B, D]``.
    """

    split: str
    prompts: tuple[str, ...]
    images: Tensor
    scores: Mapping[str, Tensor]
    kl: Tensor | None
    encoder: Callable[[Tensor], Tensor]

    @cached_property
    def features(self) -> Tensor:
        """Unit embeddings ``[B, D]`` of the images by the suite's CLIP, computed once and only where a metric asks."""
        return self.encoder(self.images)


@dataclass(frozen=True)
class Number:
    """The meaning of one number of a metric, as figures and tables show it.

    Attributes:
        name: in the record.
        title: what it is, such as "Diversity within a prompt".
        unit: what it is measured in; it stands at the axis. Empty where there is none.
        better: which way is up; None where neither way is better in itself.
    """

    name: str
    title: str
    unit: str = ""
    better: Better | None = None


class Metric(ABC):
    """Turns one evaluation into named numbers.

    An instance is made once for each evaluator and may keep what it loads. The record names a number
    ``<split>/<number>``, and ``<split>/<number>/mean``, ``/stderr`` (over prompts) and ``/count`` (of images) where the
    metric gives one value for each image. The report draws a curve and fills a table from it without being told.

    Class attributes:
        name: the registry's name; messages call it so.
        title: of its figure; the title of its first number where it is empty.
        numbers: what it may give. The names of the evaluated rewards are allowed besides.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    numbers: ClassVar[tuple[Number, ...]] = ()

    @abstractmethod
    def __call__(self, seen: Evaluation) -> Mapping[str, Tensor | float | None]:
        """Measure one evaluation, without a graph.

        Args:
            seen: the images of one split, and what is known of them.

        Returns:
            For each number, by its name, a finite float, or one value for each image ``[B]``, which is recorded as mean, standard
            error and count; None where it has no value here. A number that is left out is not recorded.
        """
