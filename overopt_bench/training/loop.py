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
from overopt_bench.evaluation.selection import distance
from overopt_bench.plugins import Plugin
from overopt_bench.recording.trackers import check_tracker
from overopt_bench.training.session import Session
from overopt_bench.types import Selection

SAVE_SECONDS = 60.0  # a kill loses at most this much work; when a checkpoint is written changes no number


def run(
    config: RunConfig, *, out: Path, runtime: Runtime | None = None, plugins: Sequence[Plugin] = (),
    tracker: str | None = None, take_over: bool = False,
) -> Path:  # fmt: skip
    """Train one run to the end of its budget, or go on with it; a complete run is left as it is.

    Under ``accelerate launch`` every process calls this; they share the work and the first one writes.

    Args:
        config: the configuration of the run.
        out: the folder of all results.
        runtime: where and how fast to compute; the CPU by default.
        plugins: the files that were given with ``--plugin``; they are recorded.
        tracker: one of ``trackers.KINDS`` to log to live, or None.
        take_over: whether to take the place of a dead process that still holds the run folder.

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
    """The session with its loop; the frame around it (starting, keeping, ending) is ``Session``'s."""

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
            if self.algorithm.role == "stays":  # it stands at the budget's end at once
                self.budget.forfeit()
            else:
                self._step()
            if isinstance(self.algorithm, Selection):
                self.pool.add(self.algorithm.candidates())
            if time.monotonic() - saved > SAVE_SECONDS and not self._due():
                self._keep()
                self._save()
                saved = time.monotonic()
        self._save_adapter()

    def _due(self) -> bool:
        """Say whether the next evaluation point is reached: k/(points-1) of the budget, the end included."""
        return self.point < self.config.eval_points and (
            self.budget.spent >= self.point * self.config.budget / (self.config.eval_points - 1)
            or self.budget.exhausted
        )

    def _step(self) -> None:
        started, queries, nfe = time.monotonic(), self.budget.queries, self.policy.nfe
        metrics = self.algorithm.step()
        metrics |= self.mitigations.take_metrics(self.world)
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
        if (reason := self.mitigations.stop(metrics)) is not None:
            self._record("stop", {"round": self.round, "reason": reason})
            self._say(f"training ends early: {reason}")
            self.budget.forfeit()  # so that the policy is evaluated where the other curves end

    def _skipped_steps(self) -> dict[str, float]:
        """Count the optimizer steps of this round that were skipped; nothing where nothing is optimised."""
        optimizers = self.algorithm.ctx.optimizers
        return {"optimizer_steps/skipped": sum(each.take_skipped() for each in optimizers)} if optimizers else {}

    def _evaluate(self) -> None:
        self.world.check_equal(self.policy.trainable())
        if isinstance(self.algorithm, Selection) and self.pool.prompts:
            row, details = self.pool.evaluate(self.algorithm)
        else:
            row, details, images = self.evaluator(whole=self.point == 0 or self.budget.exhausted)
            name = self.recorder.image(self.budget.queries, images, details[0]["columns"])
            details = [{**detail, "image_file": name} for detail in details]
            if isinstance(self.algorithm, Selection):  # so far it keeps what it draws
                row |= distance(0.0)
        for detail in details:
            self.recorder.write("scores", {**self._where(), "point": self.point, **detail})
        self._record("eval", {"point": self.point, **row})
        self.progress.evaluated(row)
        intervals = self.config.eval_points - 1
        passed = int(self.budget.spent * intervals / self.config.budget)  # not spent // spacing: 2048 // 409.6 is 4
        self.point = self.config.eval_points if self.budget.exhausted else passed + 1
