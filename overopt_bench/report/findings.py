"""What happened to each gold: did it fall from its peak, by how much, in how many seeds, and where to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from overopt_bench.report import readings
from overopt_bench.report.columns import SPLITS
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Difference, Estimate, against_zero, corrected
from overopt_bench.report.tables import gold_name
from overopt_bench.report.wording import PROMPTS, Sentence, grounds, interval, name, seeds, shown, why_not, wins

NOTHING = "no overoptimization shown within this budget"
BELOW = " (the peak is read on other images than it was located on, so it can lie below the end)"
FEW = 3  # algorithms on a proxy that have a sentence each; more of them share one, and a table has the rest


@dataclass(frozen=True)
class Finding:
    """One sentence about what algorithms did to a gold; ``reference`` says whose runs these are."""

    said: Sentence
    reference: bool


@dataclass(frozen=True)
class Outcome:
    """What one algorithm did to a gold on a proxy, on one split of the prompts.

    Attributes:
        proxy: trained on.
        gold: looked at.
        split: whose images were scored.
        label: of the algorithm.
        runs: the seeds that kept single images of both.
        fall: from the cross-fitted peak to the end, over seeds, with the p of their sign flips.
        p: that of the fall, after Holm's correction for the algorithms on the proxy that have seeds enough.
        peak: height of the peak.
        end: the gold at the end, weighted as the peak is: each prompt alike.
        queries: spent at the peak.
        proxy_then: what the proxy said at the gold's peak; None where it was not scored there.
        gold_ends: the gold at the start and at the end, over all images.
        proxy_ends: what the proxy said at the start and at the end.
        rose: seeds whose gold rose to a peak, each by more than two standard errors over prompts.
        fell: seeds whose gold fell from there, likewise.
        lost: seeds that were overoptimized: the proxy rose and the gold fell.
        reference: whether these are runs of the reference records.
    """

    proxy: str
    gold: str
    split: str
    label: str
    runs: list[Run]
    fall: Difference
    p: float
    peak: float
    end: float
    queries: Estimate
    proxy_then: Estimate | None
    gold_ends: tuple[float, float]
    proxy_ends: tuple[float, float]
    rose: int
    fell: int
    lost: int
    reference: bool

    @property
    def fell_at_all(self) -> bool:
        """Whether the gold is lower at the end than at its peak, over seeds or by the errors of any of them."""
        return self.fell > 0 or (self.fall.clear and self.fall.value > 0)


def outcomes(group: Group) -> list[Outcome]:
    """What happened for each trained algorithm, proxy, gold and split; those of the reference records come last."""
    found = []
    for part in (part for part in (group, group.reference) if part is not None):
        for proxy in group.proxies():
            for gold, split in product(group.golds(proxy), SPLITS):
                labels = part.trained(proxy)
                family = [_outcome(part, proxy, label, gold, split, part is not group) for label in labels]
                known = [one for one in family if one is not None]
                ps = corrected([one.fall for one in known])
                found += [replace(one, p=p) for one, p in zip(known, ps, strict=True)]
    return found


def _outcome(part: Group, proxy: str, label: str, gold: str, split: str, reference: bool) -> Outcome | None:
    peaks = [(run, run.gain(split, proxy), run.peak(split, gold)) for run in part.of(proxy, label, gold)]
    known = [(run, gain, peak) for run, gain, peak in peaks if gain is not None and peak is not None]
    if not known:
        return None
    runs = [run for run, *_ in known]
    falls = np.array([peak.drop.mean for *_, peak in known])
    fall = replace(against_zero(falls), wins=float((falls > 0).sum()))  # a gold that ends at its peak has not fallen
    queries = readings.estimate(runs, partial(readings.peak_queries, split=split, gold=gold))
    assert queries is not None  # each of these runs has a peak

    def ends(reward: str) -> tuple[float, float]:
        values = [run.curve(f"{split}/{reward}/mean")[1] for run in runs]
        return float(np.mean([one[0] for one in values])), float(np.mean([one[-1] for one in values]))

    return Outcome(
        proxy, gold, split, label, runs, fall, fall.p,
        peak=float(np.mean([peak.value for *_, peak in known])), end=float(np.mean([peak.end for *_, peak in known])),
        queries=queries, proxy_then=readings.estimate(runs, partial(readings.proxy_at_peak, split=split, gold=gold)),
        gold_ends=ends(gold), proxy_ends=ends(proxy), rose=sum(peak.rise.shown for *_, peak in known),
        fell=sum(peak.drop.shown for *_, peak in known),
        lost=sum(gain.shown and peak.drop.shown for _, gain, peak in known), reference=reference,
    )  # fmt: skip


def findings(group: Group, found: Sequence[Outcome]) -> list[Finding]:
    """Say whether golds fell: a sentence for each algorithm, or one for all on a proxy where they are many.

    Sentences are about the training prompts, and add what held-out prompts say where these were recorded.
    """
    sentences = []
    together: dict[tuple[bool, str, str], list[Outcome]] = {}
    for outcome in found:
        together.setdefault((outcome.reference, outcome.proxy, outcome.gold), []).append(outcome)
    for (reference, _, gold), same in together.items():
        train = [one for one in same if one.split == "train"]
        held_out = {one.label: one for one in same if one.split != "train"}
        role = group.role(gold)
        few = [Sentence(_finding(one, held_out.get(one.label), role)) for one in train]
        said = few if len(train) <= FEW else [_summary(train, held_out, role)]
        sentences += [Finding(one, reference) for one in said]
    return sentences


def _finding(one: Outcome, held_out: Outcome | None, role: str) -> str:
    count = len(one.runs)
    verdict = (
        f"overoptimized in {one.lost} of {count}" if 0 < one.lost < count else "overoptimized" if one.lost else NOTHING
    )
    text = (
        f"{name(one.label)} on {one.proxy} ({seeds(count)}): the {role} {one.gold} {_fell(one)}. It went from"
        f" {one.gold_ends[0]:.3f} to {one.gold_ends[1]:.3f}, highest at {one.peak:.3f} after {one.queries.value:.0f} queries"
        f"{BELOW if one.peak < one.end else ''}, the proxy from {one.proxy_ends[0]:.3f} to {one.proxy_ends[1]:.3f}."
    )
    if held_out is not None:
        text += f" On held-out prompts it {_fell(held_out)}."
    return (
        f"{text} By the errors over prompts of each seed, the {role} {_count(one.rose, count, 'rose', 'did not rise')} and"
        f" {_count(one.fell, count, 'fell from there', 'did not fall')}: {verdict}."
    )


def _fell(one: Outcome) -> str:
    """Whether and by how much a gold fell over seeds."""
    if one.fall.count < 2:
        peak = one.runs[0].peak(one.split, one.gold)
        error = f"; standard error over prompts {peak.drop.error:.3f}" if peak is not None else ""
        return f"ended {one.fall.value:.3f} below its peak (1 seed{error})"
    what = grounds(one.fall, one.p, "seed")
    if shown(one.fall, one.p) and one.fall.value > 0:
        return f"fell by {one.fall.value:.3f} from its peak ({what})"
    if one.fall.clear and one.fall.value > 0:
        return f"ended {one.fall.value:.3f} below its peak ({what}{why_not(one.fall, 'seed')})"
    return f"was not shown to fall from its peak (by {one.fall.value:.3f}, {what})"


def _summary(same: Sequence[Outcome], held_out: Mapping[str, Outcome], role: str) -> Sentence:
    """What happened to a gold on a proxy, algorithm by algorithm, in one sentence."""
    lost = [f"{name(one.label)} {_loss(one, held_out.get(one.label))}" for one in same if one.lost]
    kept = [name(one.label) for one in same if not one.lost]
    lead = f"Trained on {same[0].proxy}, the {role} {same[0].gold} was overoptimized by {len(lost)} of {len(same)} algorithms"
    if not lost:
        return Sentence(f"{lead}; not shown for {', '.join(kept)}.")
    return Sentence(lead, (*lost, *([f"not shown for {', '.join(kept)}"] if kept else [])))


def _loss(one: Outcome, held_out: Outcome | None) -> str:
    """How far the gold of an overoptimized algorithm fell."""
    text = f"by {one.fall.value:.3f} ({grounds(one.fall, one.p, 'seed')})"
    if held_out is not None:
        text += f", on held-out prompts by {held_out.fall.value:.3f} ({grounds(held_out.fall, held_out.p, 'seed')})"
    return f"{text}; overoptimized in {one.lost} of {seeds(len(one.runs))} by the errors of each"


def _count(count: int, of: int, yes: str, no: str) -> str:
    """How many seeds did it; with a single one, whether it did."""
    if of == 1:
        return yes if count else no
    return f"{yes} in {count} of {of} seeds"


def outcomes_table(group: Group, found: Sequence[Outcome]) -> pd.DataFrame:
    """Tabulate the outcomes: the fall over seeds, where the peak is, and in how many seeds the gold rose and fell."""
    return pd.DataFrame([
        {"proxy": one.proxy, "algorithm": one.label + (", reference" if one.reference else ""),
         "gold": gold_name(group, one.gold), "prompts": PROMPTS[one.split], "seeds": len(one.runs),
         "fall from the peak": one.fall, "fell": wins(one.fall, "seed"), "p": f"{one.fall.p:.4f}",
         "p (Holm)": f"{one.p:.4f}", "queries at peak": one.queries, "proxy at peak": one.proxy_then,
         "proxy at end": readings.estimate(one.runs, partial(readings.end, key=f"{one.split}/{one.proxy}/mean")),
         "gold rose": one.rose, "gold fell": one.fell, "overoptimized": one.lost}
        for one in found
    ])  # fmt: skip


def stopping(group: Group, found: Sequence[Outcome]) -> list[tuple[str, Sentence, bool]]:
    """Say where a user should stop, a sentence for each proxy and gold: the proxy, the sentence, whether anything fell."""
    own = [one for one in found if not one.reference]
    held_out = {(one.proxy, one.gold, one.label): one for one in own if one.split != "train"}
    together: dict[tuple[str, str], list[Outcome]] = {}
    for one in own:
        if one.split == "train":
            together.setdefault((one.proxy, one.gold), []).append(one)
    sentences = []
    for (proxy, gold), same in together.items():
        role = group.role(gold)
        parts = [_stop(one, held_out.get((proxy, gold, one.label))) for one in same if one.fell_at_all]
        fell = len(parts) > 0
        if never := [name(one.label) for one in same if not one.fell_at_all]:
            parts.append(f"no earlier than the budget's end with {', '.join(never)}, whose {role} was not seen to fall")
        sentences.append((proxy, Sentence(f"Where to stop on {proxy} by the {role} {gold}", tuple(parts)), fell))
    return sentences


def _stop(one: Outcome, held_out: Outcome | None) -> str:
    text = f"{name(one.label)} {_after(one)[:-1]}, {seeds(len(one.runs))})"
    if one.proxy_then is not None:
        text += f", where the proxy says {one.proxy_then.value:.3f} and at the end {one.proxy_ends[1]:.3f}"
    return text if held_out is None else f"{text}, on held-out prompts {_after(held_out)}"


def _after(one: Outcome) -> str:
    """The queries at the peak, with the part of their interval that a run can spend."""
    low, high, last = one.queries.low, one.queries.high, float(one.runs[0].evaluations.queries[-1])
    possible = replace(
        one.queries, low=None if low is None else max(low, 0), high=None if high is None else min(high, last)
    )
    return f"after {one.queries.value:.0f} queries ({interval(possible, 0)})"
