"""What several rewards compute of the same images or prompts, computed once.

Rewards, diversity and critics ask for features, pictures or embeddings without knowing of each other. Inside
``Shared.batch`` what one of them was given is kept for the others; outside every call computes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_active: ContextVar[Shared | None] = ContextVar("active", default=None)


class Shared:
    """A store of what was computed of a closed set of prompts, for good, and of one batch of images at a time."""

    def __init__(self) -> None:
        self.prompts: dict[Hashable, Any] = {}
        self.images: dict[Hashable, tuple[Tensor, Any]] = {}  # the images with it, so that their identity stays theirs

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Inside: results are kept here. On the way out those of images are let go."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)
            self.images.clear()


def sharing() -> AbstractContextManager[None]:
    """Keep results until the end of this context, or of the one around it where there is one."""
    return nullcontext() if _active.get() is not None else Shared().batch()


def once_a_batch(images: Tensor, key: Hashable, make: Callable[[], T]) -> T:
    """Give ``make()``, called the first time only for these very images and this key.

    Args:
        images: any; those with a gradient are never shared, so that no graph joins two rewards.
        key: what is computed, and by which network.
        make: computes it.
    """
    shared = _active.get()
    if shared is None or images.requires_grad:
        return make()
    place = (id(images), key)
    if place not in shared.images:
        shared.images[place] = (images, make())
    return cast(T, shared.images[place][1])


def once_a_run(prompts: Sequence[str], key: Hashable, make: Callable[[], T]) -> T:
    """Give ``make()``, called the first time only for this list of prompts and this key.

    It is a whole list, since a row's last bits may depend on how many are computed together.

    Args:
        prompts: of the rows.
        key: what is computed, by which network and where.
        make: computes it.
    """
    shared = _active.get()
    if shared is None:
        return make()
    place = (tuple(prompts), key)
    if place not in shared.prompts:
        shared.prompts[place] = make()
    return cast(T, shared.prompts[place])
