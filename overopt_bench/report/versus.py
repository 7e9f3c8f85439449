"""Two labels seed by seed: gold and proxy at the end, and the fall from the peak, for each proxy and gold in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from overopt_bench.errors import UserError
from overopt_bench.report import readings
from overopt_bench.report.columns import SPLITS
from overopt_bench.report.comparisons import END, FALL
from overopt_bench.report.groups import Group, comparable, differences_in_words, settings_of
from overopt_bench.report.load import Run, find_runs
from overopt_bench.report.readings import Reading
from overopt_bench.report.statistics import Difference, common_seeds, corrected, difference
from overopt_bench.report.wording import PROMPTS


@dataclass(frozen=True)
class Side:
    """One of two labels: what the user calls it, and its complete runs."""

    name: str
    runs: list[Run]


def read_side(given: str, results: Sequence[Path] | None, is_label: bool) -> Side:
    """Read the runs of a label, or of a folder that holds runs of one label.

    Raises:
        UserError: where there is no complete run, or a folder holds runs of several labels.
    """
    found = find_runs(results if is_label else [Path(given)])
    runs = [run for run in found if run.state == "complete" and (not is_label or run.label == given)]
    if not runs:
        states = ", ".join(sorted({run.state for run in found if not is_label or (run.config and run.label == given)}))
        raise UserError(f"{given} has no complete run; there are: {states}")
    labels = sorted({run.label for run in runs})
    if len(labels) > 1:
        raise UserError(
            f"{given} holds runs of several labels, {', '.join(labels)}; name two of them, with --results {given}, or a"
            " folder with the runs of one"
        )
    return Side(given, runs)


def versus(a: Side, b: Side) -> pd.DataFrame:
    """Compare two labels wherever their runs are of equal settings, weights and rewards.

    Returns:
        For each proxy and gold that both have, on training and held-out prompts: the means of A and B, the difference A - B
        with its 95 % interval (``low``, ``high``), the number of pairs, in how many A is above B (``wins`` of ``of``), p,
        and p after Holm's correction for all rows that can be shown. Paired by seed; where fewer than two seeds are common, ``paired`` is
        False and the interval and p are Welch's. What does not train is one deterministic evaluation, and stands beside
        each seed of the other.

    Raises:
        UserError: where the two share runs, have no settings or no proxy in common, or a seed of one is ambiguous.
    """
    shared = {run.folder.resolve() for run in a.runs} & {run.folder.resolve() for run in b.runs}
    if shared:
        raise UserError(
            f"{a.name} and {b.name} share runs, such as {min(shared)}; name two folders without common runs"
        )
    every = {id(run) for run in a.runs}
    alike = []
    for settings, members, _ in comparable([*a.runs, *b.runs]):
        one, two = ([run for run in members if (id(run) in every) is own] for own in (True, False))
        if one and two:
            alike.append((Group("", settings, tuple(members)), Side(a.name, one), Side(b.name, two)))
    if not alike:
        words = differences_in_words(*(settings_of(side.runs[0]) for side in (a, b)))
        raise UserError(
            f"{a.name} and {b.name} have no runs that may be compared; the first of each differ in"
            f" {'; '.join(words) or 'the weights of a reward'}"
        )
    found = [(group.title, *row) for group, one, two in alike for row in _rows(group, one, two)]
    if not found:
        proxies = [", ".join(sorted({run.proxy for run in side.runs})) for side in (a, b)]
        raise UserError(f"no proxy in common: {a.name} was trained on {proxies[0]}, {b.name} on {proxies[1]}")
    ps = corrected([compared for *_, compared in found])
    rows = [{"runs": title, **row, "p (Holm)": p} for (title, row, _), p in zip(found, ps, strict=True)]
    table = pd.DataFrame(rows)
    return table if table["runs"].nunique() > 1 else table.drop(columns="runs")


def _rows(group: Group, a: Side, b: Side) -> Iterator[tuple[dict[str, Any], Difference]]:
    proxies = [p for p in group.proxies() if all(any(run.proxy == p for run in side.runs) for side in (a, b))]
    for proxy in proxies:
        one, two = (_seeds(side, proxy) for side in (a, b))
        golds = [g for g in group.golds(proxy) if all(any(run.recorded(g) for run in runs) for runs in (one, two))]
        for split in SPLITS:
            asked: list[tuple[str, str, Reading]] = [(f"{proxy} (proxy)", END, _end(split, proxy))]
            for gold in golds:
                called = f"{gold} ({group.role(gold)})"
                asked.append((called, END, _end(split, gold)))
                asked.append((called, FALL, partial(readings.fall, split=split, gold=gold)))
            for reward, what, reading in asked:
                if (compared := _compared(one, two, reading)) is not None:
                    numbers, found = compared
                    yield {"proxy": proxy, "reward": reward, "prompts": PROMPTS[split], "what": what, **numbers}, found


def _end(split: str, reward: str) -> Reading:
    return lambda run: run.last(f"{split}/{reward}/mean")


def _seeds(side: Side, proxy: str) -> list[Run]:
    """A side's runs on a proxy, one of each seed.

    Raises:
        UserError: where two runs have one seed, or parameters differ.
    """
    runs = [run for run in side.runs if run.proxy == proxy]
    for k, run in enumerate(runs):
        for other in runs[:k]:
            words = differences_in_words(*(dict(one.config.get("params", {})) for one in (other, run)))
            if words or other.config["seed"] == run.config["seed"]:
                raise UserError(
                    f"{side.name} is ambiguous: {other.folder} and {run.folder} differ in"
                    f" {'; '.join(words) or 'nothing that a comparison reads, and have one seed'}; name folders instead"
                )
    return runs


def _compared(a: list[Run], b: list[Run], reading: Reading) -> tuple[dict[str, Any], Difference] | None:
    """The numbers of one row; None where a side lacks what is read."""
    one, two = (readings.by_seed(runs, reading) for runs in (a, b))
    if not one or not two:
        return None
    if a[0].role == "stays" and b[0].role != "stays":
        one = dict.fromkeys(two, next(iter(one.values())))
    elif b[0].role == "stays" and a[0].role != "stays":
        two = dict.fromkeys(one, next(iter(two.values())))
    found = difference(one, two)
    if found.paired:
        here, _ = common_seeds([*one], [*two])
        both = [[*one][k] for k in here]
        one, two = ({seed: values[seed] for seed in both} for values in (one, two))
    nothing = float("nan")
    numbers = {
        "A": sum(one.values()) / len(one), "B": sum(two.values()) / len(two), "difference": found.value,
        "low": nothing if found.low is None else found.low, "high": nothing if found.high is None else found.high,
        "pairs": found.count, "wins": found.wins, "of": found.of, "p": found.p, "paired": found.paired,
    }  # fmt: skip
    return numbers, found
