"""Which runs may be compared, and which rewards are gold there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from overopt_bench.registry import suites
from overopt_bench.report.load import Run, full_settings

NOT_COMPARED = {
    "algo",
    "params",
    "seed",
    "gold",
    "proxy",
    "mitigation",
    "tag",
}  # everything else must be equal within a figure

REFERENCES = ("base", "best_of_n")  # what is shown beside the algorithms that train


@dataclass(frozen=True)
class Group:
    """Complete runs that may be drawn together: same suite, budget, sampler and evaluation; any proxies.

    Attributes:
        name: a short name, unlike that of any other group of the report.
        settings: what the runs have in common.
        runs: the runs.
        reference: records of the repository to draw beside them, up to their own budget.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    reference: Group | None = None

    def proxies(self) -> list[str]:
        """Proxies that something was trained on, sorted."""
        return sorted({str(run.config["proxy"]) for run in self.runs})

    def labels(self, proxy: str) -> list[str]:
        """Algorithms run on a proxy, in the order in which they are always shown."""
        order = [*REFERENCES, "ddpo", "alignprop", "tdpo", "tdpo_r"]
        found = {run.label for run in self.runs if run.config["proxy"] == proxy}
        return sorted(found, key=lambda label: (order.index(label) if label in order else len(order), label))

    def of(self, proxy: str, label: str, reward: str | None = None) -> list[Run]:
        """The seeds of one algorithm on one proxy; only those that recorded the reward, where one is named."""
        runs = [run for run in self.runs if run.config["proxy"] == proxy and run.label == label]
        runs = [run for run in runs if reward is None or run.recorded(reward)]
        return sorted(runs, key=lambda run: int(run.config["seed"]))

    @property
    def truth(self) -> str | None:
        """The reward that is true in the suite's world; None where nobody knows, as with photographs."""
        suite = suites.classes().get((None, str(self.settings["suite"])))
        return suite.gold if suite is not None and suite.knows_truth else None

    def golds(self, proxy: str | None = None) -> list[str]:
        """Every reward that any run of the group asked for as gold, the suite's truth behind the others.

        A reward is no gold for the runs that were trained on it: where ``proxy`` is given, it is left out.
        """
        asked = list(dict.fromkeys(gold for run in self.runs for gold in run.config["gold"]))
        asked = [gold for gold in asked if any(run.recorded(gold) for run in self.runs)]
        return sorted((gold for gold in asked if gold != proxy), key=lambda gold: gold == self.truth)

    def role(self, gold: str) -> str:
        """What a gold reward is called: "truth" where it is the suite's own truth, else "gold"."""
        return "truth" if gold == self.truth else "gold"

    def lacking(self, gold: str) -> list[Run]:
        """The runs that did not record a gold, of those that were not trained on it."""
        return [run for run in self.runs if not run.recorded(gold) and run.config["proxy"] != gold]

    def shared_queries(self, proxy: str) -> float:
        """How many queries every run on a proxy has spent, the reference's runs included."""
        parts = (part for part in (self, self.reference) if part is not None)
        runs = [run for part in parts for run in part.runs if run.config["proxy"] == proxy]
        return float(min(run.of("eval")[-1]["queries"] for run in runs))

    @property
    def title(self) -> str:
        """What every figure says of itself."""
        s = self.settings
        return f"{s['suite']}, {s['budget']} {s['budget_unit']}"


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Complete runs by everything that must be equal for a comparison.

    Seeds of one algorithm and proxy whose parameters differ are kept apart: the smaller set goes to a group of
    its own, named for what differs.
    """
    tables: dict[str, list[Run]] = {}
    for run in runs:
        if run.state != "complete":
            continue
        key = {k: v for k, v in full_settings(run.config).items() if k not in NOT_COMPARED}
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
