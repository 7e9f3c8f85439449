"""Pairs of algorithms on a proxy: how their golds differ, seed by seed, and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

import numpy as np
import pandas as pd

from overopt_bench.report import readings
from overopt_bench.report.columns import SPLITS
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.readings import Reading
from overopt_bench.report.statistics import Difference, corrected, difference
from overopt_bench.report.tables import gold_name
from overopt_bench.report.wording import PROMPTS, name, shown, wins

ENOUGH = 3  # seeds of each algorithm below which no verdict is given
FALL, GAIN, KL, END, QUERIES = (
    "fall from the peak", "at equal proxy gain", "at equal path KL", "at the end", "after equal queries"
)  # fmt: skip
QUESTIONS = (FALL, GAIN, KL, END, QUERIES)  # in the order in which they are answered
Known = dict[tuple[str, float | None], dict[int, float]]  # by a side's name and where it is read, a number by seed


@dataclass(frozen=True)
class Comparison:
    """Two algorithms on a proxy, the one with the greater number first.

    Attributes:
        proxy: trained on.
        gold: compared.
        split: on whose images.
        question: one of ``QUESTIONS``.
        where: along the budget they are compared, in words.
        more: name of the algorithm with more of the gold; of the greater fall, where falls are compared.
        less: that of the other.
        difference: more - less, over seeds.
        p: that of the difference, after Holm's correction for the pairs of the same question, proxy, gold and split that have
            seeds enough to be shown.
        level: mean of the first.
    """

    proxy: str
    gold: str
    split: str
    question: str
    where: str
    more: str
    less: str
    difference: Difference
    p: float
    level: float

    @property
    def shown(self) -> bool:
        """Whether the difference is shown after Holm's correction."""
        return shown(self.difference, self.p)


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an algorithm's name and its runs."""

    name: str
    runs: list[Run]


def comparisons(group: Group) -> list[Comparison]:
    """Compare each pair of trained algorithms on each proxy and gold, where both have enough seeds.

    Algorithms of the group are asked every question; against the reference records only how much gold there is after as
    many queries as both have spent.
    """
    found = []
    for proxy in group.proxies():
        for gold, question, split in product(group.golds(proxy), QUESTIONS, SPLITS):
            known: Known = {}
            family = [
                one for a, b in _pairs(group, proxy, gold, question)
                if (one := _compare(group, proxy, gold, split, question, a, b, known)) is not None
            ]  # fmt: skip
            ps = corrected([one.difference for one in family])
            found += [replace(one, p=p) for one, p in zip(family, ps, strict=True)]
    return found


def _pairs(group: Group, proxy: str, gold: str, question: str) -> Iterator[tuple[Side, Side]]:
    own = [Side(name(label), group.of(proxy, label, gold)) for label in group.trained(proxy)]
    if question != QUERIES:
        yield from combinations(own, 2)
    elif (reference := group.reference) is not None:
        labels = reference.trained(proxy)
        yield from product(own, [Side(f"{name(b)} (reference)", reference.of(proxy, b, gold)) for b in labels])


def _compare(
    group: Group, proxy: str, gold: str, split: str, question: str, a: Side, b: Side, known: Known
) -> Comparison | None:
    asked = _reading(group, proxy, gold, split, question, [*a.runs, *b.runs])
    if asked is None:
        return None
    reading, where, target = asked
    for side in (a, b):
        if (side.name, target) not in known:
            known[side.name, target] = readings.by_seed(side.runs, reading)
    one, two = known[a.name, target], known[b.name, target]
    if min(len(one), len(two)) < ENOUGH:
        return None
    found = difference(one, two)
    if found.value < 0:
        a, b, one, found = b, a, two, difference(two, one)
    return Comparison(
        proxy, gold, split, question, where, a.name, b.name, found, found.p, float(np.mean([*one.values()]))
    )


def _reading(
    group: Group, proxy: str, gold: str, split: str, question: str, runs: list[Run]
) -> tuple[Reading, str, float | None] | None:
    """What a question reads off each run, where in words and at which number; None where the runs do not allow it."""
    key = f"{split}/{gold}/mean"
    if question == FALL:
        return partial(readings.fall, split=split, gold=gold), question, None
    if question == GAIN:
        gain = readings.smallest(runs, partial(readings.proxy_gain, split=split))
        if gain is None:
            return None
        there = partial(readings.gold_at_proxy_gain, split=split, gold=gold, gain=gain)
        return there, f"at equal proxy gain ({gain:+.3f})", gain
    if question == KL:
        kl = readings.smallest(runs, lambda run: run.last(f"{split}/path_kl/mean"))
        if kl is None:
            return None
        there = partial(readings.gold_at_path_kl, split=split, gold=gold, kl=kl)
        return there, f"at equal path KL ({kl:.3g} nats)", kl
    if question == END:
        return lambda run: run.last(key), question, None
    queries = group.shared_queries(proxy)
    return lambda run: run.at(key, queries), f"after {queries:.0f} queries", None


def comparisons_table(group: Group, found: Sequence[Comparison]) -> pd.DataFrame:
    """Tabulate the comparisons."""
    return pd.DataFrame([
        {"proxy": one.proxy, "gold": gold_name(group, one.gold), "prompts": PROMPTS[one.split], "what": one.where,
         "more": one.more, "less": one.less, "pairs": one.difference.count, "difference": one.difference,
         "more in": wins(one.difference), "p": f"{one.difference.p:.4f}", "p (Holm)": f"{one.p:.4f}",
         "paired": "yes" if one.difference.paired else "no (Welch)", "shown": "yes" if one.shown else "no"}
        for one in found
    ])  # fmt: skip
