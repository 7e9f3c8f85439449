"""The loop: sample, score, update until the budget is spent; evaluate at fixed points; survive anything."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import torch

from overopt_bench.assembly import assemble
from overopt_bench.config import RunConfig
from overopt_bench.errors import RunError, UserError
from overopt_bench.evaluate import Evaluator
from overopt_bench.optimizer import MAX_SKIPPED
from overopt_bench.plugins import Plugin
from overopt_bench.progress import Progress
from overopt_bench.provenance import provenance, resume_command
from overopt_bench.recorder import open_recorder
from overopt_bench.registry import evaluated_rewards, get_reward, get_suite
from overopt_bench.runtime import Runtime
from overopt_bench.trackers import Tracker
from overopt_bench.types import Algorithm
from overopt_bench.world import join_world

ROUNDED = 0.05  # share of ratios that rounding may put outside the clip range without a warning
SAVE_SECONDS = 60.0  # a kill loses at most this much work; when a checkpoint is written changes no number


def run(
    config: RunConfig, *, out: Path, runtime: Runtime | None = None, plugins: Sequence[Plugin] = (),
    tracker: str | None = None,
) -> Path:  # fmt: skip
    """Train one run to the end of its budget, or go on with it; a complete run is left as it is.

    Under ``accelerate launch`` every process calls this; they share the work and the first one writes.

    Returns:
        The run folder.

    Raises:
        UserError: where the folder is not this run's or the disk is full.
        RunError: where training failed, or another process of the run died; the record says why.
        KeyboardInterrupt: after Ctrl-C, once everything is saved.
    """
    session = _Session(config, out, runtime or Runtime(), plugins, tracker)
    try:
        session.run()
    finally:
        session.recorder.close()
    return session.recorder.folder


class _Stop:
    """Ctrl-C and SIGTERM ask for a stop at the next step boundary; a second one does not wait."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step ...", file=sys.stderr, flush=True)

    @contextmanager
    def listening(self) -> Iterator[None]:
        try:
            old = {s: signal.signal(s, self) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: whoever runs us handles signals
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class _Session:
    """One process's work on one run."""

    def __init__(
        self, config: RunConfig, out: Path, runtime: Runtime, plugins: Sequence[Plugin], tracker: str | None
    ) -> None:
        self.config, self.stop = config, _Stop()
        self.command = resume_command(config, out, runtime, plugins)
        self.world = join_world(runtime.device)
        suite = get_suite(config.suite, runtime.weights, config.model)
        self.rewards = {name: get_reward(name, suite) for name in evaluated_rewards(suite, config.proxy, config.gold)}
        parts = assemble(config, suite, self.rewards, runtime, self.world)
        self.policy, self.budget, self.generators = parts.policy, parts.budget, parts.generators
        self.algorithm: Algorithm = parts.algorithm
        self.evaluator = Evaluator(suite, self.policy, self.rewards, config)
        # only now, when nothing that a user gave can be wrong any more, something is written
        origin = provenance(
            config, suite, self.rewards, parts.own_encoder, plugins, parts.runtime, processes=self.world.size
        )
        self.recorder = open_recorder(config.folder(out), config, origin, self.world)
        self.tracker = Tracker(tracker if self.world.main else None, config, self.recorder.folder)
        self.round, self.point, self._warned, self._warned_skipped = 0, 0, False, False

    def run(self) -> None:
        """Go on from the newest checkpoint until the budget is spent."""
        if self.world.on_main(self.recorder.complete):
            self._say(f"{self.recorder.folder} is complete; nothing to do")
            return
        state, complaints = self.world.on_main(self.recorder.resume)
        for line in complaints:
            self._say(f"warning: {line}", sys.stderr)
        self._calibrate(state)
        if state is not None:
            self._load(state)
            self._say(f"going on at {self.budget.queries} queries")
        self.recorder.status("running", self.budget.queries)
        with self.stop.listening(), Progress(self.config, self.budget, quiet=not self.world.main) as self.progress:
            try:
                self._loop()
            except FloatingPointError as error:
                self.recorder.status("failed", self.budget.queries, str(error))
                saved = any((self.recorder.folder / "checkpoint").iterdir())
                kept = (
                    f"the last good checkpoint is kept in {self.recorder.folder}" if saved else "nothing was saved yet"
                )
                raise RunError(f"{error}; stopped at {self.budget.queries} queries, {kept}") from None
            except torch.cuda.OutOfMemoryError:
                self.recorder.status("failed", self.budget.queries, "out of GPU memory")
                raise RunError(
                    f"out of GPU memory with micro-batches of {self.policy.micro_batch} and, in training,"
                    f" {self.algorithm.ctx.micro_batch}; run the same command with a smaller --micro-batch, which changes no"
                    " result and goes on from the last checkpoint"
                ) from None
            except UserError:  # the disk is full, so the status cannot be written either
                raise
            except BaseException as error:
                reason = "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {error}"
                state_name = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                self.recorder.status(state_name, self.budget.queries, reason)
                raise
        self.recorder.status("complete", self.budget.queries)
        self.tracker.close()
        if self.stop.asked:  # during the last evaluation: too late for this run, not for what a sweep has left
            raise KeyboardInterrupt

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
            if self._due():
                self._evaluate()
                self._save()
                saved = time.monotonic()
            if self.budget.exhausted:
                break
            if self.world.any(self.stop.asked):
                self._save()
                self._say(f"interrupted and saved; go on with:\n  {self.command}")
                raise KeyboardInterrupt
            if self.algorithm.trains:
                self._step()
            else:
                self._select()
            if time.monotonic() - saved > SAVE_SECONDS and not self._due():
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
        if metrics.get("clipfrac/first", 0) > ROUNDED and not self._warned:
            self._warned = True
            self._say(
                f"warning: {metrics['clipfrac/first']:.0%} of ratios are outside the clip range before any update, by rounding"
                f" alone ({self.config.precision}); a finer --precision or a wider clip_range would mend it", sys.stderr,
            )  # fmt: skip
        metrics = {**metrics, **self._skipped_steps()}
        row = {**self._where(), "round": self.round, **metrics}
        self.recorder.write("train", row)
        self.tracker.log(metrics, self.budget.queries)
        for event in self.algorithm.critic_events():
            self.recorder.write("critic", {**self._where(), "round": self.round, **event})
        self.progress.trained(metrics)

    def _skipped_steps(self) -> dict[str, float]:
        """How many optimizer steps of this round were skipped; nothing where nothing is optimised."""
        optimizers = self.algorithm.ctx.optimizers
        skipped = sum(optimizer.take_skipped() for optimizer in optimizers)
        if skipped and not self._warned_skipped:
            self._warned_skipped = True
            self._say(
                f"warning: round {self.round} skipped {skipped} of its optimizer steps, for the gradient was not finite; float16"
                f" overflows now and then, {MAX_SKIPPED} in a row end the run (optimizer_steps/skipped counts them)", sys.stderr,
            )  # fmt: skip
        return {"optimizer_steps/skipped": skipped} if optimizers else {}

    def _select(self) -> None:
        """A round of a method without training. One that spends nothing (``base``) stands at the budget's end at once."""
        if not self.algorithm.selects:
            self.budget.forfeit()
            return
        self._step()
        if (found := self.algorithm.candidates()) is not None:
            self.evaluator.add_to_pool(found)

    def _where(self) -> dict[str, Any]:
        return {"queries": self.budget.queries, "nfe": self.budget.nfe, "seconds": round(self.budget.seconds, 3)}

    def _evaluate(self) -> None:
        self.world.check_equal(self.policy.trainable())
        if self.evaluator.pool.prompts:
            row = self.evaluator.best_of_n()
        else:
            row, details, images = self.evaluator()
            name = self.recorder.image(self.budget.queries, images, details[0]["columns"])
            for detail in details:
                self.recorder.write("scores", {**self._where(), "point": self.point, **detail, "image_file": name})
        self.recorder.write("eval", {**self._where(), "point": self.point, **row})
        self.tracker.log(row, self.budget.queries)
        self.progress.evaluated(row)
        intervals = self.config.eval_points - 1
        passed = int(self.budget.spent * intervals / self.config.budget)  # not spent // spacing: 2048 // 409.6 is 4
        self.point = self.config.eval_points if self.budget.exhausted else passed + 1

    def _save(self) -> None:
        state = {
            "policy": self.policy.state_dict(), "algorithm": self.algorithm.state_dict(), "budget": self.budget.state_dict(),
            "generators": self.generators.state_dict(), "pool": self.evaluator.pool.state_dict(),
            "round": self.round, "point": self.point, "calibration": self.calibration,
        }  # fmt: skip
        self.recorder.checkpoint(self.budget.queries, state)
        self._save_adapter()

    def _save_adapter(self) -> None:
        self.recorder.adapter(self.policy.save_adapter)

    def _load(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.budget.load_state_dict(state["budget"])
        self.evaluator.pool.load_state_dict(state["pool"])
        self.round, self.point = state["round"], state["point"]
        self.generators.load_state_dict(state["generators"])
