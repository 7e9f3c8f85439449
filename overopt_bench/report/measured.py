"""What the metrics of a group's runs are, so that each gets its figure and its rows whoever wrote it.

This package's metrics and those of installed packages say it themselves; what a plugin's meant stands in the sessions of
the runs that had it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import pandas as pd

from overopt_bench.registry import metrics
from overopt_bench.report.cells import Cell
from overopt_bench.report.groups import Group
from overopt_bench.report.readings import change, end, estimate, start
from overopt_bench.types import Number
from overopt_bench.types.metric import Better


@dataclass(frozen=True)
class Measured:
    """One metric that runs recorded.

    Attributes:
        name: the metric's.
        title: of its figure.
        numbers: those of its numbers that were recorded, by their key in the record.
    """

    name: str
    title: str
    numbers: Mapping[str, Number]


def measured(group: Group, split: str = "train") -> list[Measured]:
    """List the metrics whose numbers any run of a group recorded, this package's first.

    The scores of rewards are not among them: they are the proxy and the golds of figures of their own.
    """
    runs = [run for part in (group, group.reference) if part is not None for run in part.runs]
    known = {cls.name: (cls.title, cls.numbers) for cls in metrics.in_order()}
    for run in runs:
        for name, described in run.metrics.items():
            known.setdefault(name, _read(described))
    found = []
    for name, (title, numbers) in known.items():
        keys = {number: next(filter(None, (run.key(split, number.name) for run in runs)), None) for number in numbers}
        if kept := {key: number for number, key in keys.items() if key is not None}:
            found.append(Measured(name, title or next(iter(kept.values())).title, kept))
    return found


def _read(described: Mapping[str, Any]) -> tuple[str, tuple[Number, ...]]:
    """What a session says of a metric; numbers that are not described as they should be are left out."""
    listed = described.get("numbers")
    numbers = []
    for entry in listed if isinstance(listed, list) else []:
        match entry:
            case {"name": str(name), "title": str(heading), "unit": str(unit), **rest}:
                better = next((way for way in get_args(Better) if way == rest.get("better")), None)
                numbers.append(Number(name, heading, unit, better))
    title = described.get("title")
    return title if isinstance(title, str) else "", tuple(numbers)


def metrics_table(group: Group, split: str = "train") -> pd.DataFrame:
    """Tabulate each number by proxy and algorithm: at the start, at the end, and the change from one to the other.

    Values are means over the seeds that recorded it, with 95 % t intervals; a single seed has none.
    """
    rows: list[dict[str, Cell]] = []
    numbers = [pair for metric in measured(group, split) for pair in metric.numbers.items()]
    cells = [(proxy, *pair, label) for proxy in group.proxies() for pair in numbers for label in group.labels(proxy)]
    for proxy, key, number, label in cells:
        runs = [run for run in group.of(proxy, label) if len(run.curve(key)[1])]
        if runs:
            rows.append({
                "proxy": proxy, "number": number.title, "unit": number.unit, "better": number.better or "",
                "algorithm": label, "seeds": len(runs), "at start": estimate(runs, partial(start, key=key)),
                "at end": estimate(runs, partial(end, key=key)), "change": estimate(runs, partial(change, key=key)),
                "recorded as": key,
            })  # fmt: skip
    return pd.DataFrame(rows)
