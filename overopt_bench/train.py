"""The loop: sample, score, update until the budget is spent; evaluate at fixed points; survive anything."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from overopt_bench.budget import Budget, Metered
from overopt_bench.config import RunConfig
from overopt_bench.errors import RunError, UserError
from overopt_bench.evaluate import Evaluator
from overopt_bench.plugins import Plugin
from overopt_bench.policy import DiffusionPolicy
from overopt_bench.progress import Progress
from overopt_bench.provenance import provenance, resume_command
from overopt_bench.recorder import Recorder
from overopt_bench.registry import algorithms, get_reward, get_suite, rewards
from overopt_bench.seeding import Generators
from overopt_bench.trackers import Tracker
from overopt_bench.types import Algorithm, TrainContext

SAVE_SECONDS = 60.0  # a kill loses at most this much work; when a checkpoint is written changes no number


def run(
    config: RunConfig, *, out: Path, device: str = "cpu", plugins: Sequence[Plugin] = (), tracker: str | None = None
) -> Path:
    """Train one run to the end of its budget, or go on with it; a complete run is left as it is.

    Returns:
        The run folder.

    Raises:
        UserError: where the folder is not this run's or the disk is full.
        RunError: where training failed; the record says why.
        KeyboardInterrupt: after Ctrl-C, once everything is saved.
    """
    session = _Session(config, out, device, plugins, tracker)
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


def draw_prompts(prompts: Sequence[str], generator: torch.Generator, n: int, per_prompt: int) -> list[str]:
    """n prompts in groups of ``per_prompt`` equal ones; groups differ until every prompt was used once.

    With ``per_prompt`` 1 the draw is i.i.d. with replacement, as in DDPO.
    """
    if n % per_prompt:
        raise ValueError(f"{n} prompts cannot be groups of {per_prompt}")
    if per_prompt == 1:
        return [prompts[int(k)] for k in torch.randint(len(prompts), (n,), generator=generator)]
    groups: list[int] = []
    while len(groups) < n // per_prompt:
        groups += torch.randperm(len(prompts), generator=generator).tolist()
    return [prompts[k] for k in groups[: n // per_prompt] for _ in range(per_prompt)]


class _Session:
    """One process's work on one run."""

    def __init__(
        self, config: RunConfig, out: Path, device: str, plugins: Sequence[Plugin], tracker: str | None
    ) -> None:
        self.config, self.stop = config, _Stop()
        self.command = resume_command(config, out, device, plugins)
        suite = get_suite(config.suite)
        self.rewards = {
            name: get_reward(name, suite)
            for name in dict.fromkeys([config.proxy, *config.gold, *rewards.names(suite.name)])
        }
        proxy = self.rewards[config.proxy]
        own_encoder = proxy.feature_dim is not None
        self.recorder = Recorder(
            config.folder(out), config, provenance(config, suite, self.rewards, own_encoder, plugins, device)
        )
        self.tracker = Tracker(tracker, config, self.recorder.folder)
        self.policy = DiffusionPolicy(
            suite.pipeline(), num_steps=config.num_steps, guidance_scale=config.guidance_scale, eta=config.eta,
            lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, device=device, seed=config.seed,
        )  # fmt: skip
        self.budget = Budget(config.budget_unit, config.budget, lambda: self.policy.nfe)
        self.generators = Generators(config.seed)
        self.evaluator = Evaluator(suite, self.policy, self.rewards, config)
        train_prompts, generators = suite.prompts[config.train_split], self.generators
        context = TrainContext(
            policy=self.policy, proxy=Metered(proxy, self.budget),
            encoder=proxy.features if own_encoder else suite.clip_features,
            feature_dim=(proxy.feature_dim if own_encoder else None) or suite.clip_dim,
            prompts=train_prompts, draw_prompts=lambda n, per_prompt: draw_prompts(train_prompts, generators["prompts"], n, per_prompt),
            generators=generators, budget_left=self.budget.queries_left,
        )  # fmt: skip
        cls = algorithms.get(config.algo)
        self.algorithm: Algorithm = cls(context, cls.Params(**config.params))
        self.round, self.point = 0, 0

    def run(self) -> None:
        """Go on from the newest checkpoint until the budget is spent."""
        if self.recorder.complete():
            print(f"{self.recorder.folder} is complete; nothing to do", flush=True)
            return
        state, complaints = self.recorder.resume()
        for line in complaints:
            print("warning:", line, file=sys.stderr, flush=True)
        if state is not None:
            self._load(state)
            print(f"going on at {self.budget.queries} queries", flush=True)
        self.recorder.status("running", self.budget.queries)
        with self.stop.listening(), Progress(self.config, self.budget) as self.progress:
            try:
                self._loop()
            except FloatingPointError as error:
                self.recorder.status("failed", self.budget.queries, str(error))
                raise RunError(
                    f"{error}; stopped at {self.budget.queries} queries, the last good checkpoint is kept in {self.recorder.folder}"
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

    def _loop(self) -> None:
        saved = time.monotonic()
        while True:
            if self._due():
                self._evaluate()
                self._save()
                saved = time.monotonic()
            if self.budget.exhausted:
                break
            if self.stop.asked:
                self._save()
                print(f"interrupted and saved; go on with:\n  {self.command}", flush=True)
                raise KeyboardInterrupt
            if self.algorithm.trains:
                self._step()
            else:
                self._select()
            if time.monotonic() - saved > SAVE_SECONDS and not self._due():
                self._save()
                saved = time.monotonic()
        self.policy.save_adapter(self.recorder.folder / "adapter")

    def _due(self) -> bool:
        """Whether the next evaluation point is reached: k/(points-1) of the budget, the end included."""
        return self.point < self.config.eval_points and (
            self.budget.spent >= self.point * self.config.budget / (self.config.eval_points - 1)
            or self.budget.exhausted
        )

    def _step(self) -> None:
        started = time.monotonic()
        metrics = self.algorithm.step()
        self.budget.seconds += time.monotonic() - started
        self.round += 1
        for name, value in metrics.items():
            if not torch.isfinite(torch.tensor(float(value))):
                raise FloatingPointError(f"{name} is {value} in round {self.round}")
        row = {**self._where(), "round": self.round, **metrics}
        self.recorder.write("train", row)
        self.tracker.log(metrics, self.budget.queries)
        for event in self.algorithm.critic_events():
            self.recorder.write("critic", {**self._where(), "round": self.round, **event})
        self.progress.trained(metrics)

    def _select(self) -> None:
        """A round of a method without training; ``base`` does nothing, so its budget is spent at once."""
        if self.algorithm.candidates() is None:
            self.budget.forfeit()
            return
        self._step()

    def _where(self) -> dict[str, Any]:
        return {"queries": self.budget.queries, "nfe": self.budget.nfe, "seconds": round(self.budget.seconds, 3)}

    def _evaluate(self) -> None:
        pool = self.algorithm.candidates()
        if pool is not None and len(pool.prompts):
            row = self.evaluator.best_of_n(pool)
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
            "generators": self.generators.state_dict(), "round": self.round, "point": self.point,
        }  # fmt: skip
        self.recorder.checkpoint(self.budget.queries, state)
        self.policy.save_adapter(self.recorder.folder / "adapter")

    def _load(self, state: dict[str, Any]) -> None:
        self.policy.load_state_dict(state["policy"])
        self.algorithm.load_state_dict(state["algorithm"])
        self.budget.load_state_dict(state["budget"])
        self.round, self.point = state["round"], state["point"]
        self.generators.load_state_dict(state["generators"])
