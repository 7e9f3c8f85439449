"""Where a frozen network's weights live."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

M = TypeVar("M", bound="nn.Module")


def follow(module: M, images: Tensor) -> M:
    """Move a module to the device of the images and return it; one that is there already is left as it is.

    Every parameter is looked at: a part that is shared may have been moved with another network before.
    """
    return module if all(p.device == images.device for p in module.parameters()) else module.to(images.device)
