"""Sentences: what happened to each gold, what a comparison shows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from overopt_bench.registry import algorithms
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import (
    Array,
    cross_fitted_peak,
    difference,
    paired_difference,
    probability_of_improvement,
)
from overopt_bench.report.tables import peak_of

NOTHING = "no overoptimization shown within this budget"
ENOUGH = 3  # seeds of each algorithm below which no verdict is given


@dataclass(frozen=True)
class Verdict:
    """One sentence about two algorithms on one proxy; ``shown`` is False where nothing was shown."""

    proxy: str
    text: str
    shown: bool


@dataclass(frozen=True)
class Finding:
    """One sentence about what an algorithm did to a gold; ``reference`` says whose runs these are."""

    text: str
    reference: bool


def name(label: str) -> str:
    """Return the title of the algorithm that is called so; the label itself where it has a tag or is not installed."""
    known = algorithms.classes().get((None, label))
    return known.title or label if known is not None else label


def findings(group: Group, split: str = "train") -> list[Finding]:
    """A sentence for each trained algorithm, proxy and gold: where both began, where the gold peaked, where both ended.

    Those of the reference records follow those of the group's own runs.
    """
    found = []
    for part in (part for part in (group, group.reference) if part is not None):
        for proxy in group.proxies():
            for label, gold in product(part.trained(proxy), group.golds(proxy)):
                runs = [run for run in part.of(proxy, label, gold) if run.scores(split, gold) is not None]
                if runs:
                    text = _finding(runs, proxy, gold, group.role(gold), split)
                    found.append(Finding(text, reference=part is not group))
    return found


def _finding(runs: list[Run], proxy: str, gold: str, role: str, split: str) -> str:
    pairs = [(_scores(run, split, proxy), _scores(run, split, gold)) for run in runs]
    gains = [paired_difference(of_proxy[-1], of_proxy[0]) for of_proxy, _ in pairs]
    peaks = [cross_fitted_peak(of_gold) for _, of_gold in pairs]
    tops = [peak_of(run, split, gold) for run in runs]
    seeds, rose, fell = len(runs), sum(peak.rise.shown for peak in peaks), sum(peak.drop.shown for peak in peaks)
    lost = sum(gain.shown and peak.drop.shown for gain, peak in zip(gains, peaks, strict=True))
    (proxy_start, proxy_end), (start, end) = (
        [float(np.mean([pair[k][point].mean() for pair in pairs])) for point in (0, -1)] for k in (0, 1)
    )
    high, queries = (float(np.mean([top[key] for top in tops])) for key in ("value", "queries"))
    verdict = f"overoptimized in {lost} of {seeds}" if 0 < lost < seeds else "overoptimized" if lost else NOTHING
    return (
        f"{name(runs[0].label)} on {proxy} ({'1 seed' if seeds == 1 else f'{seeds} seeds'}): the {role} {gold} went from"
        f" {start:.3f} to {end:.3f}, highest at {high:.3f} after {queries:.0f} queries, while the proxy went from"
        f" {proxy_start:.3f} to {proxy_end:.3f}. The {role} {_count(rose, seeds, 'rose', 'did not rise')} and"
        f" {_count(fell, seeds, 'fell from there', 'did not fall')}: {verdict}."
    )


def _scores(run: Run, split: str, reward: str) -> Array:
    scores = run.scores(split, reward)
    assert scores is not None  # only runs that kept them come here
    return scores


def _count(count: int, seeds: int, yes: str, no: str) -> str:
    """How many seeds did it; with a single one, whether it did."""
    if seeds == 1:
        return yes if count else no
    return f"{yes} in {count} of {seeds} seeds"


def verdicts(group: Group, split: str = "train") -> list[Verdict]:
    """A sentence for each pair of trained algorithms on each proxy and gold.

    Algorithms of the group are compared at their ends, and with the reference records after as many queries as both
    have spent.
    """
    found = []
    for proxy in group.proxies():
        labels = group.trained(proxy)
        few = [label for label in labels if len(group.of(proxy, label)) < ENOUGH]
        if few and (len(labels) > 1 or group.reference):
            counts = ", ".join(f"{name(label)} has {len(group.of(proxy, label))}" for label in few)
            text = f"On {proxy} no verdict is given without {ENOUGH} seeds: {counts}."
            found.append(Verdict(proxy, text, False))
        for gold in group.golds(proxy):
            for one, two, when in _pairs(group, proxy, gold):
                if min(len(one.values), len(two.values)) >= ENOUGH:
                    found.append(_compare(proxy, f"{group.role(gold)} ({gold})", one, two, when))
    return found


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an algorithm's name and a value for each of its seeds ``[seeds]``."""

    name: str
    values: Array


def _pairs(group: Group, proxy: str, gold: str, split: str = "train") -> Iterator[tuple[Side, Side, str]]:
    """What is compared on a proxy: two sides, and where along the budget."""
    key = f"{split}/{gold}/mean"

    def side(part: Group, label: str, queries: float | None = None) -> Side:
        ends = [run.last(key) if queries is None else run.at(key, queries) for run in part.of(proxy, label, gold)]
        suffix = " (reference)" if part is not group else ""
        return Side(name(label) + suffix, np.array([end for end in ends if end is not None], float))

    trained = group.trained(proxy)
    for a, b in combinations(trained, 2):
        yield side(group, a), side(group, b), "at the end"
    if group.reference is not None:
        queries = group.shared_queries(proxy)
        for a, b in product(trained, group.reference.trained(proxy)):
            yield side(group, a, queries), side(group.reference, b, queries), f"after {queries:.0f} queries"


def _compare(proxy: str, gold: str, one: Side, two: Side, when: str) -> Verdict:
    estimate = difference(one.values, two.values)
    if estimate.value < 0:
        one, two = two, one
        estimate = difference(one.values, two.values)
    assert estimate.low is not None and estimate.high is not None
    interval = f"95 % interval {estimate.low:.3f} to {estimate.high:.3f}, {estimate.count} seeds"
    chance = probability_of_improvement(one.values, two.values)
    if estimate.low <= 0:
        return Verdict(
            proxy,
            f"On {proxy} no difference in the {gold} {when} was shown between {one.name} and {two.name}"
            f" ({estimate.value:+.3f}, {interval}).",
            False,
        )
    return Verdict(
        proxy,
        f"On {proxy}, {one.name} keeps {estimate.value:.3f} more of the {gold} than {two.name} {when}"
        f" ({interval}; a run of it is the better one with probability {chance:.2f}).", True,
    )  # fmt: skip
