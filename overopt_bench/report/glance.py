"""What each algorithm did to each gold, a proxy a row: the table that a page about several proxies begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from overopt_bench.report.cells import Cell
from overopt_bench.report.findings import Outcome
from overopt_bench.report.groups import Group
from overopt_bench.report.statistics import Estimate
from overopt_bench.report.tables import gold_name
from overopt_bench.report.wording import shown


def glance_table(group: Group, found: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate the outcomes on training prompts, a row for each gold, question and proxy and a column for each algorithm.

    Of one proxy it is empty: there the sentences say it.
    """
    own = {(one.gold, one.proxy, one.label): one for one in found if one.split == "train" and not one.reference}
    proxies = [proxy for proxy in group.proxies() if any(proxy == on for _, on, _ in own)]
    if len(proxies) < 2:
        return pd.DataFrame()
    labels = [label for label in group.appearing() if any(label == of for *_, of in own)]
    golds = [gold for gold in group.golds() if any(gold == about for about, *_ in own)]
    asked: tuple[tuple[str, Callable[[Outcome], Cell]], ...] = (
        ("start to end", _change), ("fall from its peak", _fall), ("fell in", _seeds)
    )  # fmt: skip
    rows: list[dict[str, Cell]] = []
    for gold in golds:
        for question, answer in asked:
            for proxy in proxies:
                here = {label: own.get((gold, proxy, label)) for label in labels}
                cells = {f"by {label}": None if one is None else answer(one) for label, one in here.items()}
                rows.append({"gold": gold_name(group, gold), "what": question, "trained on": proxy, **cells})
    return pd.DataFrame(rows)


def _change(one: Outcome) -> Cell:
    start, end = one.gold_ends
    return Estimate(end - start, None, None, len(one.runs))


def _fall(one: Outcome) -> Cell:
    return one.fall


def _seeds(one: Outcome) -> Cell:
    return f"{one.fall.wins:g} of {one.fall.of}{'*' if shown(one.fall, one.p) and one.fall.value > 0 else ''}"
