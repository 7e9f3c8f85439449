"""The loop: sample, score, update until the budget is spent; evaluate at fixed points; survive anything."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import torch

from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig
from overopt_bench.errors import Stopped
from overopt_bench.plugins import Plugin
from overopt_bench.recording.trackers import check_tracker
from overopt_bench.training.session import Session

SAVE_SECONDS = 60.0  # a kill loses at most this much work; when a checkpoint is written changes no number


def run(
    config: RunConfig, *, out: Path, runtime: Runtime | None = None, plugins: Sequence[Plugin] = (),
    tracker: str | None = None, take_over: bool = False,
) -> Path:  # fmt: skip
    """Train one run to the end of its budget, or go on with it; a complete run is left as it is.

    Under ``accelerate launch`` every process calls this; they share the work and the first one writes.

    Args:
        tracker: also log live to this one of ``trackers.KINDS``. take_over: take the place of a dead process that still
            holds the run folder.

    Returns:
        The run folder.

    Raises:
        UserError: where the folder is not this run's or the disk is full.
        RunError: where training failed, or another process of the run died; the record says why.
        Stopped: a SystemExit, after Ctrl-C, SIGTERM or SIGHUP; the state before the round or evaluation that was given up
            is saved, so that the run goes on to the same numbers.
    """
    check_tracker(tracker)
    session = _Session(config, out, runtime or Runtime(), plugins, tracker, take_over)
    try:
        with closing(session):
            session.run()
    except Stopped:
        session.tell()
        raise
    return session.recorder.folder


class _Session(Session):
    """A session with its loop; the frame around it (starting, keeping, ending) is ``Session``'s."""

    def _loop(self) -> None:
        saved = time.monotonic()
        while True:
            self._keep()
            if self._due():
                self._evaluate()
                self._keep()
                self._save()
                saved = time.monotonic()
            if self.budget.exhausted:
                break
            self.stop.check()
            if self.algorithm.trains:
                self._step()
            else:
                self._select()
            if time.monotonic() - saved > SAVE_SECONDS and not self._due():
                self._keep()
                self._save()
                saved = time.monotonic()
        self._save_adapter()

    def _due(self) -> bool:
        """Whether the next evaluation point is reached: k/(points-1) of the budget, the end included."""
        return self.point < self.config.eval_points and (
            self.budget.spent >= self.point * self.config.budget / (self.config.eval_points - 1)
            or self.budget.exhausted
        )

    def _step(self) -> None:
        started, queries, nfe = time.monotonic(), self.budget.queries, self.policy.nfe
        metrics = self.algorithm.step()
        # each process counted its own share, and its own clock
        spent = torch.tensor([self.budget.queries - queries, self.policy.nfe - nfe], dtype=torch.float64)
        self.budget.queries, self.policy.nfe = (
            before + int(more) for before, more in zip((queries, nfe), self.world.sum(spent).tolist(), strict=True)
        )
        self.budget.seconds = self.world.on_main(lambda: self.budget.seconds + time.monotonic() - started)
        self.round += 1
        for name, value in metrics.items():
            if not torch.isfinite(torch.tensor(float(value))):
                raise FloatingPointError(f"{name} is {value} in round {self.round}")
        metrics = {**metrics, **self._skipped_steps()}
        for line in self.health.complaints(self.round, metrics):
            self._say(f"warning: {line}", sys.stderr)
        self._record("train", {"round": self.round, **metrics})
        for event in self.algorithm.critic_events():
            self.recorder.write("critic", {**self._where(), "round": self.round, **event})
        self.progress.trained(metrics)

    def _skipped_steps(self) -> dict[str, float]:
        """How many optimizer steps of this round were skipped; nothing where nothing is optimised."""
        optimizers = self.algorithm.ctx.optimizers
        return {"optimizer_steps/skipped": sum(each.take_skipped() for each in optimizers)} if optimizers else {}

    def _select(self) -> None:
        """A round of a method without training. One that spends nothing (``base``) stands at the budget's end at once."""
        if not self.algorithm.selects:
            self.budget.forfeit()
            return
        self._step()
        if (found := self.algorithm.candidates()) is not None:
            self.evaluator.add_to_pool(found)

    def _evaluate(self) -> None:
        self.world.check_equal(self.policy.trainable())
        if self.evaluator.pool.prompts:
            row = self.evaluator.best_of_n()
        else:
            row, details, images = self.evaluator()
            name = self.recorder.image(self.budget.queries, images, details[0]["columns"])
            for detail in details:
                self.recorder.write("scores", {**self._where(), "point": self.point, **detail, "image_file": name})
        self._record("eval", {"point": self.point, **row})
        self.progress.evaluated(row)
        intervals = self.config.eval_points - 1
        passed = int(self.budget.spent * intervals / self.config.budget)  # not spent // spacing: 2048 // 409.6 is 4
        self.point = self.config.eval_points if self.budget.exhausted else passed + 1
