"""Run folders as they are: complete, incomplete, damaged, recorded in one session or in several."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from overopt_bench.config import MEMORY_PARAMS, RunConfig
from overopt_bench.errors import UserError
from overopt_bench.recording.sessions import parsed_line, read_json_bytes, read_sessions
from overopt_bench.registry import algorithms
from overopt_bench.report.statistics import Array
from overopt_bench.types.algorithm import Role

STATES = ("complete", "running", "interrupted", "failed")  # what a status.json may say
COMMITTED = ("reference", "search")  # folders of the repository's own records within ``results``
REQUIRED: dict[str, type] = {
    "algo": str, "proxy": str, "gold": list, "suite": str, "seed": int, "budget": int, "budget_unit": str
}  # fmt: skip


@dataclass
class Run:
    """One run folder.

    Attributes:
        folder: where it is.
        state: complete, running, interrupted, failed, damaged or duplicate.
        reason: why it is in that state; empty where there is nothing to say.
        config: the resolved configuration.
        sessions: where its numbers came from, once for each time that it was started or resumed.
        events: the lines of ``metrics.jsonl``.
    """

    folder: Path
    state: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the run's first numbers came from; empty where nothing was recorded."""
        return self.sessions[0] if self.sessions else {}

    @property
    def metrics(self) -> dict[str, dict[str, Any]]:
        """What the sessions say of other people's metrics, by the metric's name."""
        said = [session.get("metrics") for session in self.sessions]
        pairs = [pair for metrics in said if isinstance(metrics, dict) for pair in metrics.items()]
        return {name: described for name, described in pairs if isinstance(described, dict)}

    def key(self, split: str, number: str) -> str | None:
        """Find the name under which a metric's number, or its mean over images, is recorded; None where neither is."""
        rows, name = self.of("eval"), f"{split}/{number}"
        return next((key for key in (name, f"{name}/mean") if any(row.get(key) is not None for row in rows)), None)

    def of(self, event: str) -> list[dict[str, Any]]:
        """Events of one kind, in order."""
        return [e for e in self.events if e["event"] == event]

    def curve(self, key: str) -> tuple[Array, Array]:
        """(queries, values) of an evaluation metric, where it was recorded."""
        rows = [(e["queries"], e[key]) for e in self.of("eval") if e.get(key) is not None]
        return np.array([r[0] for r in rows], float), np.array([r[1] for r in rows], float)

    def last(self, key: str) -> float | None:
        """The metric at the end; None where the last evaluation does not have it."""
        rows = self.of("eval")
        return float(rows[-1][key]) if rows and rows[-1].get(key) is not None else None

    def at(self, key: str, queries: float) -> float | None:
        """The metric after so many queries, interpolated between evaluations; None where it was not recorded there."""
        xs, ys = self.curve(key)
        return float(np.interp(queries, xs, ys)) if len(xs) and xs[0] <= queries <= xs[-1] else None

    def scores(self, split: str, reward: str) -> Array | None:
        """Scores ``[points, images]`` of a split; None where single images were not kept (best-of-n)."""
        rows = [e["scores"][reward] for e in self.of("scores") if e["split"] == split and reward in e["scores"]]
        return np.array(rows, float) if len(rows) > 1 else None

    def recorded(self, reward: str, split: str = "train") -> bool:
        """Whether the run evaluated the reward."""
        return any(e.get(f"{split}/{reward}/mean") is not None for e in self.of("eval"))

    @property
    def algo(self) -> str:
        return str(self.config["algo"])

    @property
    def role(self) -> Role:
        """What the algorithm does with the policy; one that is not installed here is taken for one that trains."""
        known = algorithms.classes().get((None, self.algo))
        return "trains" if known is None else known.role

    @property
    def label(self) -> str:
        """The algorithm, with its mitigations and the tag where there are any: tags stand for other settings."""
        name = " + ".join([self.algo, *self.config.get("mitigation", ())])
        return name + (f" [{self.config['tag']}]" if self.config.get("tag") else "")


def full_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration with today's defaults for the fields that came after it was recorded."""
    fields = RunConfig.model_fields.items()
    later = {name: f.get_default(call_default_factory=True) for name, f in fields if not f.is_required()}
    return {**json.loads(json.dumps(later)), **config}


def find_runs(paths: Iterable[Path] | None = None) -> list[Run]:
    """Reads every run folder at or below the paths.

    Args:
        paths: run folders or folders of runs. Where None, the user's own runs: all in ``results`` but the
            repository's records.

    Raises:
        UserError: where a path does not exist or there is no run folder.
    """
    own = paths is None
    given = [Path("results")] if paths is None else list(paths)
    skipped = [Path("results", name) for name in COMMITTED] if own else []
    folders: list[Path] = []
    for path in given:
        if not path.is_dir():
            raise UserError(
                f"{path} is no folder; make a run with `overopt-bench run`, or give run folders or a folder of runs,"
                " such as `overopt-bench report elsewhere/results`"
            )
        found = sorted(
            f.parent for name in ("config.json", "metrics.jsonl") for f in path.rglob(name) if ".tmp" not in f.name
        )
        found = [f for f in found if not any(f.is_relative_to(skip) for skip in skipped)]
        folders += [f for f in dict.fromkeys(found) if f not in folders and _looks_like_run(f)]
    if not folders:
        committed = next((path for path in skipped if path.is_dir()), None)
        hint = f"; to draw the repository's own records: `overopt-bench report {committed}`" if committed else ""
        raise UserError(f"there is no run in {', '.join(map(str, given))}; make one with `overopt-bench run`{hint}")
    return mark_duplicates([read_run(folder) for folder in folders])


def mark_duplicates(runs: list[Run]) -> list[Run]:
    """Marks all but one of the runs with the same configuration and seed as ``duplicate``: they are not two seeds.

    Golds do not count, since they change nothing in training; the run that recorded the most rewards is kept.
    """
    kept: dict[str, Run] = {}
    complete = [run for run in runs if run.state == "complete"]
    for run in sorted(complete, key=lambda run: -len(run.of("eval")[-1])):
        settings = {k: v for k, v in full_settings(run.config).items() if k != "gold"}
        first = kept.setdefault(json.dumps([settings, run.provenance.get("weights")], sort_keys=True), run)
        if first is not run:
            run.state, run.reason = "duplicate", f"same configuration and seed as {first.folder}"
    return runs


def _looks_like_run(folder: Path) -> bool:
    """Other software writes ``config.json`` too; a run has metrics or a status beside it."""
    return (folder / "metrics.jsonl").exists() or (folder / "status.json").exists()


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
    lines = (folder / "metrics.jsonl").read_bytes().splitlines() if (folder / "metrics.jsonl").exists() else []
    for number, line in enumerate(lines, 1):
        event = parsed_line(line)
        if not {"event", "queries"} <= event.keys():
            run.state, run.reason = "damaged", f"metrics.jsonl line {number} of {len(lines)} does not parse"
            break
        run.events.append(event)
    if not run.of("eval") and run.state in ("complete", "damaged"):
        run.state, run.reason = "damaged", run.reason or "metrics.jsonl holds no evaluation"
    elif run.state == "complete" and run.role != "selects" and run.of("eval")[-1]["queries"] < _end(run):
        run.state, run.reason = "damaged", "status says complete but the last evaluations are missing"
    return run


def _end(run: Run) -> int:
    return int(run.config["budget"]) if run.config["budget_unit"] == "queries" else 0
