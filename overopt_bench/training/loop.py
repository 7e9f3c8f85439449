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
from overopt_bench.errors import DriftError, RunError, Stopped, UserError
from overopt_bench.evaluation.evaluator import Evaluator
from overopt_bench.evaluation.selection import SamplePool
from overopt_bench.plugins import Plugin
from overopt_bench.recording.provenance import provenance, resume_command
from overopt_bench.recording.recorder import Snapshot, open_recorder
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.recording.trackers import NoTracker, Tracker, check_tracker, open_tracker
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite
from overopt_bench.training.build import assemble
from overopt_bench.training.progress import Progress
from overopt_bench.training.stopping import StopSignals, print_last
from overopt_bench.types import Algorithm, Selection

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


class _Session:
    """One process's work on one run."""

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
        self.evaluator = Evaluator.of_policy(
            self.policy, suite, self.rewards, config.training_prompts(suite), images=config.eval_images,
            eval_seed=config.eval_seed,
        )  # fmt: skip
        self.origin = provenance(
            config, suite, self.rewards, parts.own_encoder, plugins, parts.runtime, processes=self.world.size
        )
        self.tracker_kind = tracker if self.world.main else None
        self.tracker: Tracker = NoTracker()
        self.kept: Snapshot | None = None  # the newest whole state: before the round or evaluation that is under way
        self.round, self.point, self._warned, self._warned_skipped = 0, 0, False, False
        # only now, when nothing that a user gave can be wrong any more, something is written
        self.recorder = open_recorder(config.folder(out), config, self.origin, self.world, take_over)

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
        """The last line of a run that was stopped: how to go on."""
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

    def _ended_by(self, error: BaseException) -> BaseException:
        """Save what was done, write down why it ends here, and return the error that says so."""
        if isinstance(error, RunError) and self.stop.number is not None:
            error = Stopped(self.stop.number)  # another process was stopped first, so it did not answer this one
        if isinstance(error, Stopped) and not self.world.main:
            time.sleep(1)  # the main process must hear the signal before it finds this one gone
        reason, told = str(error), error
        if isinstance(error, torch.cuda.OutOfMemoryError):
            reason, told = "out of GPU memory", RunError(
                f"out of GPU memory with micro-batches of {self.policy.micro_batch} and, in training,"
                f" {self.algorithm.ctx.micro_batch}; run the same command with a smaller --micro-batch, which changes no"
                " result and goes on from the last checkpoint"
            )  # fmt: skip
        elif isinstance(error, FloatingPointError):
            saved = self.kept is not None or any((self.recorder.folder / "checkpoint").iterdir())
            kept = f"the last good checkpoint is kept in {self.recorder.folder}" if saved else "nothing was saved yet"
            told = RunError(f"{error}; stopped at {self.budget.queries} queries, {kept}")
        elif not isinstance(error, (Stopped, RunError, UserError)):
            reason = f"{type(error).__name__}: {error}"
        self._write_down("interrupted" if isinstance(error, (Stopped, KeyboardInterrupt)) else "failed", reason, error)
        return told

    def _write_down(self, state: str, reason: str, error: BaseException | None = None) -> None:
        """Save the state that was kept, where it is good, and the status, where the disk takes them."""
        queries = self.budget.queries if self.kept is None else self.kept.queries
        if self.kept is not None and not isinstance(error, DriftError):
            with suppress(UserError, RunError):
                self.recorder.save(self.kept)
        with suppress(UserError, RunError):
            self.recorder.status(state, queries, reason)

    def _overdue(self, number: int) -> None:
        """The main thread does not answer: save in its place and end the process."""
        try:
            self._write_down("interrupted", str(Stopped(number)))
            self.recorder.close()
            self.tell()
        finally:
            sys.stdout.flush()
            os._exit(128 + number)

    def _say(self, line: str, file: TextIO | None = None) -> None:
        if self.world.main:
            print(line, file=file or sys.stdout, flush=True)

    def _calibrate(self, state: Mapping[str, Any] | None) -> None:
        """Standardise the rewards that need it: as the checkpoint says, else on base samples of the training prompts."""
        self.calibration: dict[str, dict[str, float]] = dict(state.get("calibration", {})) if state else {}
        asking = [reward for reward in self.rewards.values() if reward.needs_base_samples]
        if absent := [reward for reward in asking if reward.name not in self.calibration]:
            images, prompts = self.evaluator.base_samples()
            for reward in absent:
                # one process's values for all: a reward must not depend on the card that scores
                facts = self.calibration[reward.name] = self.world.on_main(partial(reward.calibrate, images, prompts))
                if state is None:
                    row = {**self._where(), "reward": reward.name, "images": len(images), **facts}
                    self.recorder.write("calibration", row)
        for reward in asking:
            reward.load_calibration(self.calibration[reward.name])

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
        """Whether the next evaluation point is reached: k/(points-1) of the budget, the end included."""
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
        """How many optimizer steps of this round were skipped; nothing where nothing is optimised."""
        optimizers = self.algorithm.ctx.optimizers
        return {"optimizer_steps/skipped": sum(each.take_skipped() for each in optimizers)} if optimizers else {}

    def _record(self, event: str, row: dict[str, Any]) -> None:
        row = {**self._where(), **row}
        self.recorder.write(event, row)
        self.tracker.record({"event": event, **row})

    def _where(self) -> dict[str, Any]:
        return {"queries": self.budget.queries, "nfe": self.budget.nfe, "seconds": round(self.budget.seconds, 3)}

    def _evaluate(self) -> None:
        self.world.check_equal(self.policy.trainable())
        if isinstance(self.algorithm, Selection) and self.pool.prompts:
            row = self.pool.evaluate(self.algorithm)
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

    def _keep(self) -> None:
        """Keep the state as it is now: what a stop or a failure in what follows saves. Only the main process needs it."""
        if not self.world.main:
            return
        state = {
            "policy": self.policy.state_dict(), "algorithm": self.algorithm.state_dict(), "budget": self.budget.state_dict(),
            "generators": self.generators.state_dict(), "pool": self.pool.state_dict(),
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
