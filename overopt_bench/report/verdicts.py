"""Sentences: what happened to each gold, what a comparison shows, and what it does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pandas as pd

from overopt_bench.registry import algorithms
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Array, Estimate, difference
from overopt_bench.report.tables import gold_name, peak_of

NOTHING = "no overoptimization shown within this budget"
ENOUGH = 3  # seeds of each algorithm below which no verdict is given
MANY = 3  # sentences about a gold on a proxy; where there would be more, one says what matters and a table has the rest


@dataclass(frozen=True)
class Verdict:
    """One sentence about two algorithms on one proxy; ``shown`` is False where nothing was shown."""

    proxy: str
    text: str
    shown: bool


@dataclass(frozen=True)
class Finding:
    """One sentence about what algorithms did to a gold; ``reference`` says whose runs these are."""

    text: str
    reference: bool


@dataclass(frozen=True)
class Outcome:
    """What one algorithm did to a gold on a proxy, and in how many of its seeds.

    Attributes:
        proxy: trained on.
        gold: looked at.
        runs: the seeds that kept single images of both.
        rose: seeds whose gold rose to a peak.
        fell: seeds whose gold fell from there.
        lost: seeds that were overoptimized: the proxy rose and the gold fell.
        reference: whether these are runs of the reference records.
    """

    proxy: str
    gold: str
    runs: list[Run]
    rose: int
    fell: int
    lost: int
    reference: bool


def name(label: str) -> str:
    """Return the title of the algorithm that is called so; the label itself where it has a tag or is not installed."""
    known = algorithms.classes().get((None, label))
    return known.title or label if known is not None else label


def outcomes(group: Group, split: str = "train") -> list[Outcome]:
    """What happened for each trained algorithm, proxy and gold; those of the reference records come last."""
    found = []
    for part in (part for part in (group, group.reference) if part is not None):
        for proxy in group.proxies():
            for label, gold in product(part.trained(proxy), group.golds(proxy)):
                seeds = [(run, run.gain(split, proxy), run.peak(split, gold)) for run in part.of(proxy, label, gold)]
                known = [(run, gain, peak) for run, gain, peak in seeds if gain is not None and peak is not None]
                rose, fell = sum(peak.rise.shown for *_, peak in known), sum(peak.drop.shown for *_, peak in known)
                lost = sum(gain.shown and peak.drop.shown for _, gain, peak in known)
                if known:
                    runs = [run for run, *_ in known]
                    found.append(Outcome(proxy, gold, runs, rose, fell, lost, reference=part is not group))
    return found


def findings(group: Group, found: Sequence[Outcome], split: str = "train") -> list[Finding]:
    """Say what happened: a sentence for each outcome, or one for all algorithms on a proxy where they are many."""
    sentences = []
    together: dict[tuple[bool, str, str], list[Outcome]] = {}
    for outcome in found:
        together.setdefault((outcome.reference, outcome.proxy, outcome.gold), []).append(outcome)
    for (reference, _, gold), same in together.items():
        role = group.role(gold)
        texts = [_finding(one, role, split) for one in same] if len(same) <= MANY else [_summary(same, role)]
        sentences += [Finding(text, reference) for text in texts]
    return sentences


def _summary(same: Sequence[Outcome], role: str) -> str:
    """What happened to a gold on a proxy, algorithm by algorithm, in one sentence."""
    lost = [f"{name(one.runs[0].label)} ({_of(one.lost, one.runs)})" for one in same if one.lost]
    kept = [name(one.runs[0].label) for one in same if not one.lost]
    text = f"Trained on {same[0].proxy}, the {role} {same[0].gold} was overoptimized by {len(lost)} of {len(same)} algorithms"
    text += f": {', '.join(lost)}" if lost else ""
    return text + (f"; not shown for {', '.join(kept)}." if kept else ".")


def _of(count: int, runs: Sequence[Run]) -> str:
    return f"{count} of {'1 seed' if len(runs) == 1 else f'{len(runs)} seeds'}"


def outcomes_table(group: Group, found: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate the outcomes: in how many seeds the gold rose, fell, and was overoptimized."""
    return pd.DataFrame([
        {"proxy": one.proxy, "algorithm": one.runs[0].label + (", reference" if one.reference else ""),
         "gold": gold_name(group, one.gold), "seeds": len(one.runs), "gold rose": one.rose, "gold fell": one.fell,
         "overoptimized": one.lost}
        for one in found
    ])  # fmt: skip


def _finding(outcome: Outcome, role: str, split: str) -> str:
    proxy, gold, runs = outcome.proxy, outcome.gold, outcome.runs
    pairs = [(_scores(run, split, proxy), _scores(run, split, gold)) for run in runs]
    tops = [peak_of(run, split, gold) for run in runs]
    seeds, rose, fell, lost = len(runs), outcome.rose, outcome.fell, outcome.lost
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


@dataclass(frozen=True)
class Comparison:
    """Two algorithms on a proxy, the one whose gold is higher first.

    Attributes:
        proxy: trained on.
        gold: compared.
        when: along the budget they are compared, in words.
        better: name of the algorithm with more of the gold.
        worse: that of the other.
        difference: of the means, with its interval over seeds.
        level: mean of the better one's gold.
        chance: that a run of the better one has more of the gold.
    """

    proxy: str
    gold: str
    when: str
    better: str
    worse: str
    difference: Estimate
    level: float
    chance: float

    @property
    def shown(self) -> bool:
        """Whether the interval is above zero."""
        return self.difference.low is not None and self.difference.low > 0


def comparisons(group: Group) -> list[Comparison]:
    """Compare each pair of trained algorithms on each proxy and gold, where both have enough seeds.

    Algorithms of the group are compared at their ends, and with the reference records after as many queries as both
    have spent.
    """
    return [
        _compare(proxy, gold, one, two, when)
        for proxy in group.proxies() for gold in group.golds(proxy) for one, two, when in _pairs(group, proxy, gold)
        if min(len(one.values), len(two.values)) >= ENOUGH
    ]  # fmt: skip


def comparisons_table(group: Group, found: Sequence[Comparison]) -> pd.DataFrame:
    """Tabulate the comparisons."""
    return pd.DataFrame([
        {"proxy": one.proxy, "gold": gold_name(group, one.gold), "better": one.better, "worse": one.worse,
         "when": one.when, "seeds": one.difference.count, "difference": one.difference,
         "probability that a run is better": f"{one.chance:.2f}", "shown": "yes" if one.shown else "no"}
        for one in found
    ])  # fmt: skip


def verdicts(group: Group, found: Sequence[Comparison]) -> list[Verdict]:
    """Say what the comparisons show: a sentence for each, or where they are many one about whose gold is highest."""
    together: dict[tuple[str, str, str], list[Comparison]] = {}
    for one in found:
        together.setdefault((one.proxy, one.gold, one.when), []).append(one)
    sentences = []
    for proxy in group.proxies():
        labels = group.trained(proxy)
        few = [label for label in labels if len(group.of(proxy, label)) < ENOUGH]
        if few and (len(labels) > 1 or group.reference):
            counts = ", ".join(f"{name(label)} has {len(group.of(proxy, label))}" for label in few)
            sentences.append(Verdict(proxy, f"On {proxy} no verdict is given without {ENOUGH} seeds: {counts}.", False))
        for (of, gold, _), same in together.items():
            if of == proxy:
                called = f"{group.role(gold)} ({gold})"
                sentences += [_sentence(one, called) for one in same] if len(same) <= MANY else [_leader(same, called)]
    return sentences


@dataclass(frozen=True)
class Side:
    """One side of a comparison: an algorithm's name and a value for each of its seeds."""

    name: str
    values: dict[int, float]


def _pairs(group: Group, proxy: str, gold: str, split: str = "train") -> Iterator[tuple[Side, Side, str]]:
    """What is compared on a proxy: two sides, and where along the budget."""
    key = f"{split}/{gold}/mean"

    def side(part: Group, label: str, queries: float | None = None) -> Side:
        runs = {int(run.config["seed"]): run for run in part.of(proxy, label, gold)}
        ends = {seed: run.last(key) if queries is None else run.at(key, queries) for seed, run in runs.items()}
        suffix = " (reference)" if part is not group else ""
        return Side(name(label) + suffix, {seed: end for seed, end in ends.items() if end is not None})

    trained = group.trained(proxy)
    for a, b in combinations(trained, 2):
        yield side(group, a), side(group, b), "at the end"
    if group.reference is not None:
        queries = group.shared_queries(proxy)
        for a, b in product(trained, group.reference.trained(proxy)):
            yield side(group, a, queries), side(group.reference, b, queries), f"after {queries:.0f} queries"


def _compare(proxy: str, gold: str, one: Side, two: Side, when: str) -> Comparison:
    found = difference(one.values, two.values)
    if found.value < 0:
        one, two = two, one
        found = difference(one.values, two.values)
    level = float(np.mean([*one.values.values()]))
    return Comparison(proxy, gold, when, one.name, two.name, found, level, found.wins / found.of)


def _sentence(one: Comparison, gold: str) -> Verdict:
    estimate = one.difference
    interval = f"95 % interval {estimate.low:.3f} to {estimate.high:.3f}, {estimate.count} seeds"
    if not one.shown:
        text = (
            f"On {one.proxy} no difference in the {gold} {one.when} was shown between {one.better} and {one.worse}"
            f" ({estimate.value:+.3f}, {interval})."
        )
    else:
        text = (
            f"On {one.proxy}, {one.better} keeps {estimate.value:.3f} more of the {gold} than {one.worse} {one.when}"
            f" ({interval}; a run of it is the better one with probability {one.chance:.2f})."
        )
    return Verdict(one.proxy, text, one.shown)


def _leader(same: Sequence[Comparison], gold: str) -> Verdict:
    """Whose gold is highest on a proxy, and from which others it was told apart."""
    first = max(same, key=lambda one: one.level).better
    own = [one for one in same if first == one.better]
    beaten, alike = ([one.worse for one in own if one.shown is shown] for shown in (True, False))
    text = f"On {same[0].proxy}, {first} has the highest {gold} {same[0].when}"
    text += f", shown against {', '.join(beaten)}" if beaten else ""
    text += f"{';' if beaten else ','} no difference was shown from {', '.join(alike)}" if alike else ""
    shown = sum(one.shown for one in same)
    return Verdict(same[0].proxy, f"{text}. Of all {len(same)} pairs, {shown} differ: see the table.", bool(beaten))
