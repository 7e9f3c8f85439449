"""Which runs may be compared, and which rewards are gold there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from overopt_bench.registry import algorithms, suites
from overopt_bench.report.load import Run, full_settings, other_rewards
from overopt_bench.report.styles import Style, assign
from overopt_bench.types.algorithm import Role

NOT_COMPARED = {
    "algo",
    "params",
    "seed",
    "gold",
    "proxy",
    "mitigation",
    "tag",
}  # everything else must be equal within a figure

ORDER: dict[Role, int] = {"stays": 0, "selects": 1, "trains": 2}  # references before what is compared with them


@dataclass(frozen=True)
class Group:
    """Complete runs that may be drawn together: same suite, budget, sampler and evaluation; any proxies.

    Attributes:
        name: a short name, unlike that of any other group of the report.
        settings: what the runs have in common.
        runs: the runs.
        reference: records of the repository to draw beside them, up to their own budget.
        styles: how each label is drawn on a page with other groups; where empty, as if the group were alone.
        note: why its runs are kept apart from others of the same settings; empty where there is nothing to say.
    """

    name: str
    settings: dict[str, Any]
    runs: tuple[Run, ...]
    reference: Group | None = None
    styles: Mapping[str, Style] = field(default_factory=dict)
    note: str = ""

    @cached_property
    def _cells(self) -> dict[str, dict[str, list[Run]]]:
        """The seeds in order, by proxy and label: what does not train first, then by the date of the paper."""
        cells: dict[str, dict[str, list[Run]]] = {}
        for run in sorted(self.runs, key=lambda run: (run.proxy, _order(run), int(run.config["seed"]))):
            cells.setdefault(run.proxy, {}).setdefault(run.label, []).append(run)
        return cells

    def proxies(self) -> list[str]:
        """Proxies that something was trained on, sorted."""
        return list(self._cells)

    def labels(self, proxy: str) -> list[str]:
        """List the algorithms run on a proxy: what does not train, then the others by the date of their paper."""
        return list(self._cells.get(proxy, ()))

    def trained(self, proxy: str | None = None) -> list[str]:
        """List the algorithms that train, on one proxy or on any, in the order of ``labels``."""
        cells = [own for of, own in self._cells.items() if proxy in (None, of)]
        runs = {label: runs[0] for own in cells for label, runs in own.items() if runs[0].role == "trains"}
        return [run.label for run in sorted(runs.values(), key=_order)]

    def appearing(self) -> dict[str, bool]:
        """Map every label, in order of appearance, to whether it trains; those of the reference come last."""
        parts = [part for part in (self, self.reference) if part is not None]
        return {
            label: part.of(proxy, label)[0].role == "trains"
            for part in parts for proxy in part.proxies() for label in part.labels(proxy)
        }  # fmt: skip

    def style(self, label: str) -> Style:
        """Return colour and marker of a label, unlike those of any other label of the page."""
        return self._styles[label]

    @cached_property
    def _styles(self) -> Mapping[str, Style]:
        return self.styles or assign(self.appearing().items())

    def of(self, proxy: str, label: str, reward: str | None = None) -> list[Run]:
        """The seeds of one algorithm on one proxy; only those that recorded the reward, where one is named."""
        runs = self._cells.get(proxy, {}).get(label, ())
        return [run for run in runs if reward is None or run.recorded(reward)]

    @cached_property
    def truth(self) -> str | None:
        """The reward that is true in the suite's world; None where nobody knows, as with photographs."""
        suite = suites.classes().get((None, str(self.settings["suite"])))
        return suite.gold if suite is not None and suite.knows_truth else None

    def golds(self, proxy: str | None = None) -> list[str]:
        """Every reward that any run of the group asked for as gold, the suite's truth behind the others.

        A reward is no gold for the runs that were trained on it: where ``proxy`` is given, it is left out.
        """
        return [gold for gold in self._golds if gold != proxy]

    @cached_property
    def _golds(self) -> list[str]:
        asked = list(dict.fromkeys(gold for run in self.runs for gold in run.config["gold"]))
        asked = [gold for gold in asked if any(run.recorded(gold) for run in self.runs)]
        return sorted(asked, key=lambda gold: gold == self.truth)

    def role(self, gold: str) -> str:
        """What a gold reward is called: "truth" where it is the suite's own truth, else "gold"."""
        return "truth" if gold == self.truth else "gold"

    def lacking(self, gold: str) -> list[Run]:
        """The runs that did not record a gold, of those that were not trained on it."""
        return [run for run in self.runs if not run.recorded(gold) and run.proxy != gold]

    def shared_queries(self, proxy: str) -> float:
        """How many queries every run on a proxy has spent, the reference's runs included."""
        parts = (part for part in (self, self.reference) if part is not None)
        runs = [run for part in parts for label in part.labels(proxy) for run in part.of(proxy, label)]
        return float(min(run.evaluations.queries[-1] for run in runs))

    @property
    def title(self) -> str:
        """What every figure says of itself."""
        s = self.settings
        return f"{s['suite']}, {s['budget']} {s['budget_unit']}"


def _order(run: Run) -> tuple[int, str, str]:
    known = algorithms.classes().get((None, run.algo))
    paper = known.paper if known is not None else ""
    return ORDER[run.role], paper or "~", run.label  # arXiv numbers sort by date


def with_styles(groups: Sequence[Group]) -> list[Group]:
    """Give the labels of all groups of a page their styles, in order of appearance."""
    styles = assign((label, trains) for group in groups for label, trains in group.appearing().items())
    return [replace(group, styles=styles) for group in groups]


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Complete runs by everything that must be equal for a comparison, the weights of model and rewards included.

    Seeds of one algorithm and proxy whose parameters differ are kept apart: the smaller set goes to a group of
    its own, named for what differs. So are runs that asked a reward of the same name and other weights. Records that are
    older than the hashes of rewards are taken to have the same.
    """
    groups = []
    for settings, members, note in comparable(run for run in runs if run.state == "complete"):
        for k, part in enumerate(_consistent(members)):
            name = f"{settings['suite']}-{settings['budget']}{settings['budget_unit']}"
            groups.append(Group(name + (f"-variant{k}" if k else ""), settings, tuple(part), note=note))
    names = [g.name for g in groups]
    return [g if names.count(g.name) == 1 else replace(g, name=f"{g.name}-{n + 1}") for n, g in enumerate(groups)]


def settings_of(run: Run) -> dict[str, Any]:
    """Everything that must be equal for a comparison but the rewards' weights: settings, and the model's weights."""
    settings = {k: v for k, v in full_settings(run.config).items() if k not in NOT_COMPARED}
    return settings | {"weights": run.provenance.get("weights")}


def comparable(runs: Iterable[Run]) -> list[tuple[dict[str, Any], list[Run], str]]:
    """Split runs into those that may be compared: their settings, the runs, and why they are apart from others of these."""
    tables: dict[str, list[Run]] = {}
    for run in runs:
        tables.setdefault(json.dumps(settings_of(run), sort_keys=True), []).append(run)
    return [(json.loads(text), same, note) for text, members in tables.items() for same, note in _same_rewards(members)]


def differences_in_words(
    here: Mapping[str, Any], there: Mapping[str, Any], may_differ: Iterable[str] = ()
) -> list[str]:
    """Say which settings differ, and in what; of weights, that they do."""
    names = sorted((here.keys() | there.keys()) - {"weights", *may_differ})
    differences = [
        f"{name} ({_short(here.get(name))} here, {_short(there.get(name))} there)"
        for name in names if here.get(name) != there.get(name)
    ]  # fmt: skip
    return differences + (["the base model's weights"] if here.get("weights") != there.get("weights") else [])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _same_rewards(runs: list[Run]) -> list[tuple[list[Run], str]]:
    """Split runs so that within a part every reward has one hash; beside each part, what tells it from the first."""
    parts: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        for hashes, members in parts:
            if not other_rewards(hashes, run.reward_hashes):
                hashes.update(run.reward_hashes)
                members.append(run)
                break
        else:
            parts.append((run.reward_hashes, [run]))
    apart = "These runs are apart from others of the same settings, for the weights differ of"
    first = parts[0][0]
    named = [(members, ", ".join(other_rewards(first, hashes))) for hashes, members in parts]
    return [(members, f"{apart} {names}." if names else "") for members, names in named]


def _consistent(runs: list[Run]) -> list[list[Run]]:
    """Split runs so that within a part all seeds of an (algorithm, proxy) have the same parameters."""
    parts: list[dict[tuple[str, str], tuple[str, list[Run]]]] = []
    for run in runs:
        cell, params = (run.label, run.proxy), json.dumps(run.config.get("params", {}), sort_keys=True)
        for part in parts:
            if cell not in part or part[cell][0] == params:
                part.setdefault(cell, (params, []))[1].append(run)
                break
        else:
            parts.append({cell: (params, [run])})
    return [[run for _, members in part.values() for run in members] for part in parts]
