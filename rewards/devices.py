"""Where a reward's weights live."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def follow(module: M, images: Tensor) -> M:
    """The module on the device of the images; it is moved the first time only."""
    return module if next(module.parameters()).device == images.device else module.to(images.device)
