"""Run folders as they are: complete, incomplete, damaged; and which of them may be compared."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from overopt_bench.errors import UserError
from overopt_bench.registry import suites
from overopt_bench.stats import Array

NOT_COMPARED = {"algo", "params", "seed", "gold", "proxy"}  # everything else must be equal within a figure

REFERENCES = ("base", "best_of_n")  # what is shown beside the algorithms that train


@dataclass
class Run:
    """One run folder. ``state`` is complete, running, interrupted, failed, damaged or duplicate; ``reason`` says why."""

    folder: Path
    state: str
    reason: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)

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

    def scores(self, split: str, reward: str) -> Array | None:
        """Scores ``[points, images]`` of a split; None where single images were not kept (best-of-n)."""
        rows = [e["scores"][reward] for e in self.of("scores") if e["split"] == split and reward in e["scores"]]
        return np.array(rows, float) if len(rows) > 1 else None

    @property
    def algo(self) -> str:
        return str(self.config["algo"])

    @property
    def label(self) -> str:
        """The algorithm, with the tag where there is one: tags stand for other settings."""
        return self.algo + (f" [{self.config['tag']}]" if self.config.get("tag") else "")


@dataclass(frozen=True)
class Group:
    """Complete runs that may be drawn together: same suite, budget, sampler and evaluation; any proxies."""

    name: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]

    def proxies(self) -> list[str]:
        """Proxies that something was trained on, sorted."""
        return sorted({str(run.config["proxy"]) for run in self.runs})

    def labels(self, proxy: str) -> list[str]:
        """Algorithms run on a proxy, in the order in which they are always shown."""
        order = [*REFERENCES, "ddpo", "alignprop", "tdpo", "tdpo_r"]
        found = {run.label for run in self.runs if run.config["proxy"] == proxy}
        return sorted(found, key=lambda label: (order.index(label) if label in order else len(order), label))

    def of(self, proxy: str, label: str) -> list[Run]:
        """The seeds of one algorithm on one proxy."""
        runs = [run for run in self.runs if run.config["proxy"] == proxy and run.label == label]
        return sorted(runs, key=lambda run: int(run.config["seed"]))

    @property
    def gold(self) -> str:
        """The gold reward that verdicts speak of: recorded by all runs, trained on by none, the suite's own first."""
        shared = set.intersection(*({*run.config["gold"]} for run in self.runs))
        unseen = shared - {*self.proxies()} or shared
        suite = suites.classes().get((None, str(self.settings["suite"])))
        return suite.gold if suite is not None and suite.gold in unseen else sorted(unseen)[0]

    @property
    def title(self) -> str:
        """What every figure says of itself."""
        s = self.settings
        return f"{s['suite']}, {s['budget']} {s['budget_unit']}"


def find_runs(paths: Iterable[Path]) -> list[Run]:
    """Every run folder at or below the paths.

    Raises:
        UserError: where a path does not exist or there is no run folder.
    """
    folders: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise UserError(
                f"{path} is no folder; give run folders or a results folder, such as `overopt-bench report results`"
            )
        found = sorted(
            f.parent for name in ("config.json", "metrics.jsonl") for f in path.rglob(name) if ".tmp" not in f.name
        )
        folders += [f for f in dict.fromkeys(found) if f not in folders and _looks_like_run(f)]
    if not folders:
        raise UserError(f"there is no run in {', '.join(map(str, paths))}; make one with `overopt-bench run`")
    return mark_duplicates([read_run(folder) for folder in folders])


def mark_duplicates(runs: list[Run]) -> list[Run]:
    """The same configuration and seed twice is one run, not two seeds: all but the first become ``duplicate``."""
    first: dict[str, Run] = {}
    for run in runs:
        if run.state == "complete":
            kept = first.setdefault(json.dumps([run.config, run.provenance.get("weights")], sort_keys=True), run)
            if kept is not run:
                run.state, run.reason = "duplicate", f"same configuration and seed as {kept.folder}"
    return runs


def _looks_like_run(folder: Path) -> bool:
    """Other software writes ``config.json`` too; a run has metrics or a status beside it."""
    return (folder / "metrics.jsonl").exists() or (folder / "status.json").exists()


def read_run(folder: Path) -> Run:
    """One folder; damage becomes a state, never an exception."""
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config, provenance = dict(content["config"]), dict(content.get("provenance", {}))
        missing = {"algo", "proxy", "gold", "suite", "seed", "budget", "budget_unit"} - config.keys()
        if missing:
            raise ValueError(f"lacks {', '.join(sorted(missing))}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Run(folder, "damaged", f"config.json: {error}")
    run = Run(folder, "complete", config=config, provenance=provenance)
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        run.state, run.reason = str(status["state"]), str(status.get("reason") or "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        run.state, run.reason = "damaged", f"status.json: {error}"
    lines = (folder / "metrics.jsonl").read_bytes().splitlines() if (folder / "metrics.jsonl").exists() else []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            assert isinstance(event, dict) and "event" in event and "queries" in event
        except (ValueError, AssertionError):
            run.state, run.reason = "damaged", f"metrics.jsonl line {number} of {len(lines)} does not parse"
            break
        run.events.append(event)
    if not run.of("eval") and run.state in ("complete", "damaged"):
        run.state, run.reason = "damaged", run.reason or "metrics.jsonl holds no evaluation"
    elif run.state == "complete" and run.config["algo"] != "best_of_n" and run.of("eval")[-1]["queries"] < _end(run):
        run.state, run.reason = "damaged", "status says complete but the last evaluations are missing"
    return run


def _end(run: Run) -> int:
    return int(run.config["budget"]) if run.config["budget_unit"] == "queries" else 0


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Complete runs by everything that must be equal for a comparison.

    Seeds of one algorithm and proxy whose parameters differ are kept apart: the smaller set goes to a group of
    its own, named for what differs.
    """
    tables: dict[str, list[Run]] = {}
    for run in runs:
        if run.state != "complete":
            continue
        key = {k: v for k, v in run.config.items() if k not in NOT_COMPARED | {"tag"}}
        key["weights"] = run.provenance.get("weights")
        tables.setdefault(json.dumps(key, sort_keys=True), []).append(run)
    groups = []
    for text, members in tables.items():
        for k, part in enumerate(_consistent(members)):
            settings = json.loads(text)
            name = f"{settings['suite']}-{settings['budget']}{settings['budget_unit']}" + (f"-variant{k}" if k else "")
            groups.append(Group(name, settings, tuple(part)))
    names = [g.name for g in groups]
    return [
        Group(g.name if names.count(g.name) == 1 else f"{g.name}-{n + 1}", g.settings, g.runs)
        for n, g in enumerate(groups)
    ]


def _consistent(runs: list[Run]) -> list[list[Run]]:
    """Split runs so that within a part all seeds of an (algorithm, proxy) have the same parameters."""
    parts: list[dict[tuple[str, str], tuple[str, list[Run]]]] = []
    for run in runs:
        cell, params = (run.label, str(run.config["proxy"])), json.dumps(run.config.get("params", {}), sort_keys=True)
        for part in parts:
            if cell not in part or part[cell][0] == params:
                part.setdefault(cell, (params, []))[1].append(run)
                break
        else:
            parts.append({cell: (params, [run])})
    return [[run for _, members in part.values() for run in members] for part in parts]
