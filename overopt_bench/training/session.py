"""The frame of a run in one process: what it holds, how it starts, what it keeps, and how it ends."""

from __future__ import annotations

import os
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from overopt_bench.compute.processes import join_world
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig
from overopt_bench.errors import INTERRUPTED, RunError, Stopped
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.evaluation.selection import SamplePool
from overopt_bench.plugins import Plugin
from overopt_bench.recording.provenance import provenance, resume_command
from overopt_bench.recording.recorder import Snapshot, open_recorder
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.recording.trackers import NoTracker, Tracker, open_tracker
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite
from overopt_bench.training.build import assemble
from overopt_bench.training.calibration import calibrate
from overopt_bench.training.ending import End, end_by, write_down
from overopt_bench.training.health import Health
from overopt_bench.training.progress import Progress
from overopt_bench.training.stopping import StopSignals, print_last
from overopt_bench.types import Algorithm


class Session(ABC):
    """One process's work on one run: everything but the loop, which a subclass gives.

    Args:
        config: the configuration of the run.
        out: the folder of all results.
        runtime: where and how fast to compute.
        plugins: the files that were given with ``--plugin``.
        tracker: one of ``trackers.KINDS`` to log to live, or None.
        take_over: whether to take the place of a dead process that still holds the run folder.
    """

    def __init__(
        self, config: RunConfig, out: Path, runtime: Runtime, plugins: Sequence[Plugin], tracker: str | None,
        take_over: bool,
    ) -> None:  # fmt: skip
        self.config = config
        self.world = join_world(runtime.device)
        self.command = resume_command(config, out, runtime, plugins, tracker, self.world.size)
        self.stop = StopSignals(quiet=not self.world.main)
        self.world.check_stop = self.stop.check
        suite = get_suite(config.suite, runtime.weights, config.model)
        self.rewards = {name: get_reward(name, suite) for name in evaluated_rewards(suite, config.proxy, config.gold)}
        parts = assemble(config, suite, self.rewards, runtime, self.world)
        self.policy, self.budget, self.generators = parts.policy, parts.budget, parts.generators
        self.algorithm: Algorithm = parts.algorithm
        self.mitigations = parts.algorithm.ctx.mitigations
        self.evaluator = Evaluator.of_policy(
            self.policy, suite, self.rewards, config.training_prompts(suite), images=config.eval_images,
            eval_seed=config.eval_seed,
        )  # fmt: skip
        self.pool = SamplePool(self.rewards, self.world, self.policy.device)
        self.origin = provenance(
            config, suite, self.rewards, parts.own_encoder, plugins, parts.runtime, processes=self.world.size
        )
        self.tracker_kind = tracker if self.world.main else None
        self.tracker: Tracker = NoTracker()
        self.kept: Snapshot | None = None  # the newest whole state: before the round or evaluation that is under way
        self.round, self.point, self.health = 0, 0, Health(config.precision)
        # only now, when nothing that a user gave can be wrong any more, something is written
        self.recorder = open_recorder(config.folder(out), config, self.origin, self.world, take_over)

    @abstractmethod
    def _loop(self) -> None:
        """Train and evaluate until the budget is spent, keeping the state before whatever may be given up."""

    def run(self) -> None:
        """Go on from the newest checkpoint until the budget is spent."""
        if self.world.on_main(self.recorder.complete):
            self._say(f"{self.recorder.folder} is complete; nothing to do")
            return
        with self.stop.listening(self._overdue):
            try:
                self._start()
                spends = self.algorithm.role != "stays"
                with Progress(self.config, self.budget, quiet=not self.world.main, spends=spends) as self.progress:
                    self._loop()
                self.recorder.status("complete", self.budget.queries)
            except BaseException as error:
                self.stop.answered()
                raise self._ended_by(error) from None
        if self.stop.number is not None:  # too late for this run, not for what a sweep has left
            self.command = ""
            raise Stopped(self.stop.number)

    def close(self) -> None:
        """Write out what is held back and release the folder."""
        try:
            self.tracker.close()
        finally:
            self.recorder.close()

    def tell(self) -> None:
        """Print the last line of a run that was stopped: how to go on."""
        if self.world.main and self.command:
            print_last(f"interrupted and saved; go on with:\n  {self.command}")

    def _start(self) -> None:
        state, complaints = self.world.on_main(self.recorder.resume)
        for line in complaints:
            self._say(f"warning: {line}", sys.stderr)
        self._calibrate(state)
        if state is not None:
            self._load(state)
            self._say(f"going on at {self.budget.queries} queries")
        self.recorder.add_session(self.origin, self.budget.queries)
        if self.tracker_kind is not None:
            folder = self.recorder.folder
            started = read_sessions(folder)[0]["started"]
            self.tracker = open_tracker(self.tracker_kind, self.config, folder, started, self.recorder.rows())
        self.recorder.status("running", self.budget.queries)

    def _calibrate(self, state: Mapping[str, Any] | None) -> None:
        """Standardise the rewards that need it, and record what was measured where the run begins here."""

        def measured(row: dict[str, Any]) -> None:
            if state is None:
                self.recorder.write("calibration", {**self._where(), **row})

        saved = state.get("calibration", {}) if state else {}
        self.calibration = calibrate(self.rewards.values(), saved, self.evaluator, self.world, measured)

    def _keep(self) -> None:
        """Keep the state as it is now: what a stop or a failure in what follows saves. Only the main process needs it."""
        if not self.world.main:
            return
        state = {
            "policy": self.policy.state_dict(), "algorithm": self.algorithm.state_dict(), "budget": self.budget.state_dict(),
            "mitigations": self.mitigations.state_dict(), "generators": self.generators.state_dict(),
            "pool": self.pool.state_dict(),
            "round": self.round, "point": self.point, "calibration": self.calibration,
        }  # fmt: skip
        self.kept = self.recorder.snapshot(self.budget.queries, state)

    def _save(self) -> None:
        if self.kept is not None:
            self.recorder.save(self.kept)
        self._save_adapter()

    def _save_adapter(self) -> None:
        self.recorder.adapter(self.policy.save_adapter)

    def _load(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.mitigations.load_state_dict(state.get("mitigations", {}))  # older checkpoints have none
        self.budget.load_state_dict(state["budget"])
        self.pool.load_state_dict(state["pool"])
        self.round, self.point = state["round"], state["point"]
        self.generators.load_state_dict(state["generators"])

    def _record(self, event: str, row: dict[str, Any]) -> None:
        row = {**self._where(), **row}
        self.recorder.write(event, row)
        self.tracker.record({"event": event, **row})

    def _where(self) -> dict[str, Any]:
        return {"queries": self.budget.queries, "nfe": self.budget.nfe, "seconds": round(self.budget.seconds, 3)}

    def _ended_by(self, error: BaseException) -> BaseException:
        """Save what was done, write down why it ends here, and return the error that says so."""
        if isinstance(error, RunError) and self.stop.number is not None:
            error = Stopped(self.stop.number)  # another process was stopped first, so it did not answer this one
        if isinstance(error, Stopped) and not self.world.main:
            time.sleep(1)  # the main process must hear the signal before it finds this one gone
        micro_batches = (self.policy.micro_batch, self.algorithm.ctx.micro_batch)
        end = end_by(error, self.recorder, self.kept, self.budget.queries, micro_batches)
        write_down(end, self.recorder, self.kept, self.budget.queries)
        return end.told

    def _overdue(self, number: int) -> None:
        """Save in the place of the main thread, which does not answer, and end the process."""
        try:
            end = End("interrupted", str(Stopped(number)), Stopped(number))
            write_down(end, self.recorder, self.kept, self.budget.queries)
            self.recorder.close()
            self.tell()
        finally:
            sys.stdout.flush()
            os._exit(INTERRUPTED)

    def _say(self, line: str, file: TextIO | None = None) -> None:
        if self.world.main:
            print(line, file=file or sys.stdout, flush=True)
