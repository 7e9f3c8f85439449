"""How a run ends: the last state that is worth saving, and what its record and its user are told."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

import torch

from overopt_bench.errors import DriftError, RunError, Stopped, UserError
from overopt_bench.recording.recorder import Recorder, Snapshot


class End(NamedTuple):
    """The end of a run that did not come to the end of its budget.

    Attributes:
        state: what ``status.json`` says, interrupted or failed.
        reason: why, in ``status.json``.
        told: the exception that tells the caller.
    """

    state: str
    reason: str
    told: BaseException


def end_by(
    error: BaseException, recorder: Recorder, kept: Snapshot | None, queries: int, micro_batches: tuple[int, int]
) -> End:
    """Translate what ended a run into words for its record and for its user.

    Args:
        error: what ended the run.
        recorder: the writer of the run.
        kept: the newest whole state, where there is one.
        queries: how many were spent.
        micro_batches: how many images a pass held, in sampling and in training.
    """
    state = "interrupted" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed"
    if isinstance(error, torch.cuda.OutOfMemoryError):
        sampling, training = micro_batches
        told = RunError(
            f"out of GPU memory with micro-batches of {sampling} and, in training, {training}; run the same command with a"
            " smaller --micro-batch, which changes no result and goes on from the last checkpoint"
        )  # fmt: skip
        return End(state, "out of GPU memory", told)
    if isinstance(error, FloatingPointError):
        saved = kept is not None or any((recorder.folder / "checkpoint").iterdir())
        where = f"the last good checkpoint is kept in {recorder.folder}" if saved else "nothing was saved yet"
        return End(state, str(error), RunError(f"{error}; stopped at {queries} queries, {where}"))
    if isinstance(error, (Stopped, RunError, UserError)):
        return End(state, str(error), error)
    return End(state, f"{type(error).__name__}: {error}", error)


def write_down(end: End, recorder: Recorder, kept: Snapshot | None, queries: int) -> None:
    """Save the state that was kept, where it is good, and the status, where the disk takes them.

    Args:
        end: how the run ended.
        recorder: the writer of the run.
        kept: the newest whole state, where there is one.
        queries: how many were spent where no state was kept.
    """
    if kept is not None and not isinstance(end.told, DriftError):
        with suppress(UserError, RunError):
            recorder.save(kept)
    with suppress(UserError, RunError):
        recorder.status(end.state, queries if kept is None else kept.queries, end.reason)
