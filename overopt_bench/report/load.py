"""Run folders as they are: complete, incomplete, damaged, recorded in one session or in several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from overopt_bench.config import MEMORY_PARAMS, RunConfig
from overopt_bench.errors import UserError
from overopt_bench.recording.folders import COMMITTED, RESULTS, run_folders
from overopt_bench.recording.labels import label_of
from overopt_bench.recording.sessions import parsed_line, read_json_bytes, read_sessions
from overopt_bench.registry import algorithms
from overopt_bench.report.columns import (
    NOWHERE,
    Dormant,
    Evaluations,
    Explained,
    Scored,
    dormant,
    evaluations,
    explained,
    scored,
)
from overopt_bench.report.peaks import Paired, Peak, cross_fitted_peak, paired_difference
from overopt_bench.report.selected import in_halves, with_own_distance
from overopt_bench.report.shared_out import each
from overopt_bench.report.statistics import Array
from overopt_bench.types.algorithm import Role

STATES = ("complete", "running", "interrupted", "failed")  # what a status.json may say
MANY = 100  # runs that are worth a process that reads them
REQUIRED: dict[str, type] = {
    "algo": str, "proxy": str, "gold": list, "suite": str, "seed": int, "budget": int, "budget_unit": str
}  # fmt: skip


@dataclass(eq=False)
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        state: complete, running, interrupted, failed, damaged or duplicate.
        reason: why it is in that state; empty where there is nothing to say.
        config: the resolved configuration.
        sessions: where its numbers came from, once for each time that it was started or resumed.
        queries: the most that any event says were spent.
        evaluations: what its evaluations measured.
        points: its images' scores, by split: one entry an evaluation.
        dormant: the dormant neurons of its critic, where it has one.
        explained: what its critic explained of the returns, where it has one.
    """

    folder: Path
    state: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    queries: float = 0
    evaluations: Evaluations = field(default_factory=lambda: evaluations([]))
    points: Mapping[str, list[Scored]] = field(default_factory=dict)
    dormant: Dormant | None = None
    explained: Explained | None = None

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the run's first numbers came from; empty where nothing was recorded."""
        return self.sessions[0] if self.sessions else {}

    @property
    def reward_hashes(self) -> dict[str, Any]:
        """The hash of each reward's weights, None of one that has none; empty where the record is older than these."""
        found = self.provenance.get("rewards")
        return dict(found) if isinstance(found, Mapping) else {}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What the sessions say of other people's metrics, by the metric's name."""
        said = [session.get("metrics") for session in self.sessions]
        pairs = [pair for metrics in said if isinstance(metrics, dict) for pair in metrics.items()]
        return {name: described for name, described in pairs if isinstance(described, dict)}

    def key(self, split: str, number: str) -> str | None:
        """Find the name under which a metric's number, or its mean over images, is recorded; None where neither is."""
        name = f"{split}/{number}"
        return next((key for key in (name, f"{name}/mean") if key in self.evaluations.numbers), None)

    def curve(self, key: str) -> tuple[Array, Array]:
        """(queries, values) of an evaluation metric, where it was recorded."""
        return self.evaluations.numbers.get(key, (NOWHERE, NOWHERE))

    def together(self, x: str, y: str) -> tuple[Array, Array]:
        """Two metrics at the same evaluations ``[points]``: those that recorded both, found by their queries."""
        (queries, xs), (others, ys) = self.curve(x), self.curve(y)
        if queries is others and (np.diff(queries) > 0).all():  # every evaluation has both: most do, and many ask
            return xs, ys
        _, here, there = np.intersect1d(queries, others, return_indices=True)
        return xs[here], ys[there]

    def last(self, key: str) -> float | None:
        """The metric at the end; None where the last evaluation does not have it."""
        queries, values = self.curve(key)
        return float(values[-1]) if len(queries) and queries[-1] == self.evaluations.queries[-1] else None

    def at(self, key: str, queries: float) -> float | None:
        """The metric after so many queries, interpolated between evaluations; None where it was not recorded there."""
        xs, ys = self.curve(key)
        return float(np.interp(queries, xs, ys)) if len(xs) and xs[0] <= queries <= xs[-1] else None

    def scores(self, split: str, reward: str) -> Array | None:
        """Scores ``[points, images]`` of a split, of ``prompts``; None where single images were not kept."""
        rows = [row for point in self.points.get(split, ()) if (row := point.of(reward)) is not None]
        return np.stack(rows) if len(rows) > 1 else None

    def prompts(self, split: str) -> tuple[str, ...]:
        """The prompt of each image of a split, the same at all points."""
        return self.points[split][0].prompts

    def peak(self, split: str, reward: str) -> Peak | None:
        """Where a split's scores are highest; None where single images were not kept. Found once."""
        if (split, reward) not in self._peaks:
            scores = self.scores(split, reward)
            self._peaks[split, reward] = None if scores is None else cross_fitted_peak(scores, self.prompts(split))
        return self._peaks[split, reward]

    @cached_property
    def _peaks(self) -> dict[tuple[str, str], Peak | None]:
        return {}

    def gain(self, split: str, reward: str) -> Paired | None:
        """By how much a split's scores rose from start to end; None where single images were not kept."""
        scores = self.scores(split, reward)
        return None if scores is None else paired_difference(scores[-1], scores[0], self.prompts(split))

    def recorded(self, reward: str, split: str = "train") -> bool:
        """Whether the run evaluated the reward."""
        return f"{split}/{reward}/mean" in self.evaluations.numbers

    @property
    def algo(self) -> str:
        return str(self.config["algo"])

    @property
    def proxy(self) -> str:
        return str(self.config["proxy"])

    @cached_property
    def role(self) -> Role:
        """What the algorithm does with the policy; one that is not installed here is taken for one that trains."""
        known = algorithms.classes().get((None, self.algo))
        return "trains" if known is None else known.role

    @cached_property
    def label(self) -> str:
        """What the run is called among others."""
        return label_of(self.config)


def other_rewards(here: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """Name the rewards whose weights differ: the same word for another number. One that either lacks does not."""
    return sorted(name for name in here.keys() & there.keys() if here[name] != there[name])


def full_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with today's defaults for the fields that came after it was recorded."""
    return {**json.loads(_defaults()), **config}


@cache
def _defaults() -> str:
    fields = RunConfig.model_fields.items()
    later = {name: f.get_default(call_default_factory=True) for name, f in fields if not f.is_required()}
    return json.dumps(later)


def find_runs(paths: Iterable[Path] | None = None) -> list[Run]:
    """Reads every run folder at or below the paths.

    Args:
        paths: run folders or folders of runs. Where None, the user's own runs: all in ``results`` but the
            repository's records.

    Raises:
        UserError: where a path does not exist or there is no run folder.
    """
    own = paths is None
    given = [RESULTS] if paths is None else list(paths)
    folders: dict[Path, None] = {}  # in order, each once
    for path in given:
        if not path.is_dir():
            raise UserError(
                f"{path} is no folder; make a run with `overopt-bench run`, or give run folders or a folder of runs,"
                " such as `overopt-bench report elsewhere/results`"
            )
        folders |= dict.fromkeys(sorted(run_folders(path, own)))
    if not folders:
        committed = next((path for path in COMMITTED if own and path.is_dir()), None)
        hint = f"; to draw the repository's own records: `overopt-bench report {committed}`" if committed else ""
        raise UserError(f"there is no run in {', '.join(map(str, given))}; make one with `overopt-bench run`{hint}")
    algorithms.classes()  # imported once, and not by each of the workers that ask for a run's role
    return mark_duplicates(each(read_run, list(folders), "runs read", MANY))


def mark_duplicates(runs: list[Run]) -> list[Run]:
    """Marks all but one of the runs with the same configuration and seed as ``duplicate``: they are not two seeds.

    Golds do not count, since they change nothing in training; the run that recorded the most rewards is kept.
    """
    kept: dict[str, list[Run]] = {}
    complete = [run for run in runs if run.state == "complete"]
    for run in sorted(complete, key=lambda run: -len(run.evaluations.numbers)):
        settings = {k: v for k, v in full_settings(run.config).items() if k != "gold"}
        alike = kept.setdefault(json.dumps([settings, run.provenance.get("weights")], sort_keys=True), [])
        first = next((one for one in alike if not other_rewards(one.reward_hashes, run.reward_hashes)), None)
        if first is None:
            alike.append(run)
        else:
            run.state, run.reason = "duplicate", f"same configuration and seed as {first.folder}"
    return runs


def read_run(folder: Path) -> Run:
    """Reads one folder; damage becomes a state, never an exception."""
    try:
        content = read_json_bytes((folder / "config.json").read_bytes())
        config = dict(content["config"])
        if missing := REQUIRED.keys() - config.keys():
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
        if wrong := [name for name, kind in REQUIRED.items() if not isinstance(config[name], kind)]:
            raise ValueError(f"is malformed in {', '.join(wrong)}")
        if not all(isinstance(gold, str) for gold in config["gold"]):
            raise ValueError("is malformed in gold")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Run(folder, "damaged", f"config.json: {error}")
    if isinstance(config.get("params"), dict):  # those of early records that change no number count as no difference
        config["params"] = {name: value for name, value in config["params"].items() if name not in MEMORY_PARAMS}
    run = Run(folder, "complete", config=config, sessions=read_sessions(folder))
    try:
        status = read_json_bytes((folder / "status.json").read_bytes())
        run.state, run.reason = str(status["state"]), str(status.get("reason") or "")
        if run.state not in STATES:
            raise ValueError(f"there is no state {run.state!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.state, run.reason = "damaged", f"status.json: {error}"
    _read_metrics(run)
    points = run.evaluations.queries
    if not len(points) and run.state in ("complete", "damaged"):
        run.state, run.reason = "damaged", run.reason or "metrics.jsonl holds no evaluation"
    elif run.state == "complete" and run.role != "selects" and points[-1] < _end(run):
        run.state, run.reason = "damaged", "status says complete but the last evaluations are missing"
    return run


def _read_metrics(run: Run) -> None:
    """Puts the events of ``metrics.jsonl`` into columns, as far as they parse."""
    file = run.folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines() if file.exists() else []
    events: dict[str, list[dict[str, Any]]] = {"eval": [], "scores": [], "critic": [], "train": []}
    for number, line in enumerate(lines, 1):
        event = parsed_line(line)
        if not (isinstance(event.get("event"), str) and isinstance(event.get("queries"), int | float)):
            run.state, run.reason = "damaged", f"metrics.jsonl line {number} of {len(lines)} does not parse"
            break
        run.queries = max(run.queries, event["queries"])
        if event["event"] in events:
            events[event["event"]].append(event)
    try:
        selects = run.role == "selects"
        run.evaluations = evaluations(with_own_distance(events["eval"]) if selects else events["eval"])
        run.points, run.dormant = scored(events["scores"]), dormant(events["critic"])
        run.explained = explained(events["train"], run.dormant.resets if run.dormant else ())
        if selects:
            run.points = {split: in_halves(points) for split, points in run.points.items()}
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        run.state, run.reason = "damaged", f"metrics.jsonl: {type(error).__name__}: {error}"


def _end(run: Run) -> int:
    return int(run.config["budget"]) if run.config["budget_unit"] == "queries" else 0
