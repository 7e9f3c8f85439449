"""The processes that share one run's work; mostly there is one.

All processes hold the same weights, draw the same prompts and noise, and each does its share of the network passes.
What comes back is put together in order, so an algorithm sees whole batches and its statistics are global.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from overopt_bench.errors import DriftError, RunError, UserError
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # the slowest thing that others wait for: the writer's evaluation images and checkpoint


@contextmanager
def _peers_alive() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo and nccl: a closed connection or a timeout
        raise RunError(
            "another process of this run died or no longer answers; the last checkpoint is kept, run the same command"
            f" again to go on ({' '.join(str(error).split())[:200]})"
        ) from None


class World:
    """Rank ``rank`` of ``size`` processes; (0, 1) is a run by itself.

    Args:
        device: on which tensors travel between processes.

    Attributes:
        check_stop: called before each micro-batch and each pass of the U-Net. Whoever runs the world may put a function
            here that raises ``Stopped``; it must not communicate, for the processes reach it at different moments.
    """

    def __init__(self, rank: int = 0, size: int = 1, device: str | torch.device = "cpu") -> None:
        self.rank, self.size, self.device = rank, size, torch.device(device)
        self.check_stop: Callable[[], None] = lambda: None

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def share(self, n: int) -> Tensor:
        """This process's part of 0..n-1, int64, in order; sizes differ by one at most, so the last ones may be empty."""
        return torch.arange(n).tensor_split(self.size)[self.rank]

    def parts(self, n: int, size: int) -> Iterator[Tensor]:
        """This process's part of 0..n-1 in micro-batches of ``size``; none where its share is empty."""
        for part in self.share(n).split(size):
            self.check_stop()
            if len(part):
                yield part

    def map(self, work: Callable[[Tensor], tuple[Tensor, ...]], n: int, size: int) -> tuple[Tensor, ...]:
        """Do ``work`` on all of 0..n-1, in micro-batches and shared out; all processes get its results ``[n, ...]``.

        Args:
            work: micro-batch of indices ``[m]`` to tensors ``[m, ...]``.
            n: how many rows there are on all processes together.
            size: of a micro-batch, at most.
        """
        done = [work(part) for part in self.parts(n, size)]
        own = tuple(torch.cat(columns) for columns in zip(*done, strict=True))
        return own if self.size == 1 else tuple(self._gather(own, n))

    def _gather(self, own: tuple[Tensor, ...], n: int) -> Iterator[Tensor]:
        lengths = [len(part) for part in torch.arange(n).tensor_split(self.size)]
        if not all(lengths):  # only a process with a share knows the shapes, and the first one always has one
            forms = self.on_main(lambda: [(tuple(tensor.shape[1:]), tensor.dtype) for tensor in own])
            own = own or tuple(torch.empty((0, *shape), dtype=dtype) for shape, dtype in forms)
        with _peers_alive():
            for tensor in own:
                tensor = tensor.to(self.device).contiguous()
                padding = tensor.new_zeros((max(lengths) - len(tensor), *tensor.shape[1:]))
                padded = torch.cat([tensor, padding]) if len(padding) else tensor
                received = [torch.empty_like(padded) for _ in lengths]
                torch.distributed.all_gather(received, padded)
                yield torch.cat([part[:k] for part, k in zip(received, lengths, strict=True)])

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.size == 1:
            return tensor
        with _peers_alive():
            total = tensor.detach().to(self.device, copy=True)
            torch.distributed.all_reduce(total)
            return total.to(tensor.device)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over all processes; a missing one counts as 0."""
        if self.size == 1:
            return
        parameters = list(parameters)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        mean = self.sum(flat) / self.size
        for p, grad in zip(parameters, mean.split([p.numel() for p in parameters]), strict=True):
            p.grad = grad.view_as(p).clone()

    def any(self, value: bool) -> bool:
        """Whether it is true on any process."""
        return bool(self.sum(torch.tensor(float(value))) > 0)

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of ``work`` on the main process, given to all.

        Raises:
            Exception: what ``work`` raised, on the main process; the others end without a word of their own.
        """
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]  # the result, or the exit status of the others
        failure: Exception | None = None
        if self.main:
            try:
                box[0] = work()
            except Exception as error:  # the others must not wait for what will never come
                failure, box[1] = error, 2 if isinstance(error, UserError) else 1
        with _peers_alive():
            torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        if failure is not None:
            raise failure
        if box[1] is not None:
            raise SystemExit(box[1])
        result: T = box[0]
        return result

    def check_equal(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make sure that all processes hold the same weights.

        Raises:
            DriftError: where they have drifted apart, because an algorithm did not average its gradients.
        """
        if self.size == 1:
            return
        own = torch.stack([p.detach().double().sum() for p in parameters]).to(self.device)
        with _peers_alive():
            first = own.clone()
            torch.distributed.broadcast(first, src=0)
        if self.any(not torch.equal(first, own)):
            raise DriftError(
                "the processes hold different weights: an algorithm must update them with overopt_bench.compute.optimizer.Optimizer,"
                " which averages gradients, and draw from ctx.generators only"
            )


def join_world(device: str) -> World:
    """The processes that ``accelerate launch`` or ``torchrun`` started, or a world of one.

    Args:
        device: ``cpu`` or ``cuda``; each process takes the card of its local rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World(device=device)
    if device.startswith("cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not torch.distributed.is_initialized():
        with _peers_alive():
            torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
        atexit.register(torch.distributed.destroy_process_group)
    return World(torch.distributed.get_rank(), size, device)
