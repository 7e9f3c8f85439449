"""How small a difference the seeds at hand could have shown: what a verdict of "not shown" leaves open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product

import numpy as np
import pandas as pd

from overopt_bench.report import readings
from overopt_bench.report.columns import SPLITS
from overopt_bench.report.comparisons import END, ENOUGH, FALL
from overopt_bench.report.groups import Group
from overopt_bench.report.readings import Reading
from overopt_bench.report.statistics import Array, paired_by_seed, pairs_for, smallest_effect
from overopt_bench.report.tables import gold_name
from overopt_bench.report.wording import PROMPTS

TEN = 10  # seeds of a thorough comparison


@dataclass(frozen=True)
class Sensitivity:
    """What can be shown of a gold on a proxy, on one split of the prompts, by one comparison of two algorithms.

    Attributes:
        proxy: trained on.
        gold: compared.
        split: on whose images.
        question: ``END`` or ``FALL``.
        algorithms: how many pairs of algorithms the deviations are of.
        pairs: the fewest and the most pairs of seeds that these have.
        deviations: of each pair of algorithms, the standard deviation of its paired differences ``[algorithms]``.
        spread: deviation of the gold over the base model's images, in which effects are told.
        reference: whether this is how the reference records scatter.
    """

    proxy: str
    gold: str
    split: str
    question: str
    algorithms: int
    pairs: tuple[int, int]
    deviations: Array
    spread: float
    reference: bool = False

    @property
    def deviation(self) -> float:
        """The deviations in the quadratic mean."""
        return float(np.sqrt(np.mean(self.deviations**2)))

    def smallest(self, pairs: int) -> float:
        """Return the smallest effect that so many pairs show four times in five, in the gold's units."""
        return smallest_effect(pairs) * self.deviation


def sensitivities(group: Group) -> list[Sensitivity]:
    """Find how much paired differences scatter, where two trained algorithms have enough seeds in common.

    What the group's own runs do not tell of a proxy and gold is that of the reference records beside them.
    """
    own = list(_scatter(group))
    told = {(one.proxy, one.gold) for one in own}
    others = () if group.reference is None else _scatter(group.reference)
    return own + [
        replace(one, reference=True) for one in others
        if one.proxy in group.proxies() and one.gold in group.golds(one.proxy) and (one.proxy, one.gold) not in told
    ]  # fmt: skip


def _scatter(group: Group) -> Iterator[Sensitivity]:
    for proxy in group.proxies():
        for gold, split in product(group.golds(proxy), SPLITS):
            spreads = [
                scores[0].std() for label in group.trained(proxy) for run in group.of(proxy, label, gold)
                if (scores := run.scores(split, gold)) is not None
            ]  # fmt: skip
            asked: tuple[tuple[str, Reading], ...] = (
                (END, partial(readings.end, key=f"{split}/{gold}/mean")),
                (FALL, partial(readings.fall, split=split, gold=gold)),
            )
            for question, reading in asked:
                pairs = list(_differences(group, proxy, gold, reading))
                if pairs and spreads:
                    counts, deviations = [len(one) for one in pairs], np.array([one.std(ddof=1) for one in pairs])
                    limits, spread = (min(counts), max(counts)), float(np.mean(spreads))
                    yield Sensitivity(proxy, gold, split, question, len(pairs), limits, deviations, spread)


def _differences(group: Group, proxy: str, gold: str, reading: Reading) -> Iterator[Array]:
    """The paired differences of each pair of trained algorithms ``[pairs]`` that has enough of them."""
    known = [readings.by_seed(group.of(proxy, label, gold), reading) for label in group.trained(proxy)]
    for one, two in combinations(known, 2):
        pairs = paired_by_seed([*one], [*one.values()], [*two], [*two.values()])
        if len(pairs) >= ENOUGH:
            yield pairs


def sensitivity_table(group: Group, found: Sequence[Sensitivity]) -> pd.DataFrame:
    """Tabulate the smallest effects; those in deviations compare proxies and golds with each other."""
    return pd.DataFrame([
        {"proxy": one.proxy, "gold": gold_name(group, one.gold), "prompts": PROMPTS[one.split], "what": one.question,
         "pairs of algorithms": f"{one.algorithms}{', reference' if one.reference else ''}", "pairs of seeds": _range(*one.pairs),
         "deviation of a difference": f"{one.deviation:.3g}",
         "least to greatest": f"{one.deviations.min():.3g} to {one.deviations.max():.3g}",
         "smallest effect, seeds at hand": _range(*(_effect(one.smallest(pairs)) for pairs in one.pairs)),
         f"{TEN} seeds": _effect(one.smallest(TEN)),
         f"{TEN} seeds, in deviations of base images": f"{one.smallest(TEN) / one.spread:.3g}",
         "seeds for the clearest of all pairs": pairs_for(one.algorithms)}
        for one in found
    ])  # fmt: skip


def sensitivity_sentence(found: Sequence[Sensitivity], proxy: str, gold: str) -> str:
    """Say what ten paired seeds would show of a gold at the end on training prompts; empty where nothing is known of it."""
    asked = (proxy, gold, "train", END)
    for one in found:
        if (one.proxy, one.gold, one.split, one.question) == asked and one.deviation > 0:
            ten, here = one.smallest(TEN), one.smallest(one.pairs[0])
            text = (
                f"On {proxy} one comparison of {gold} at the end shows, four times in five, {ten:.3g} or more with {TEN} paired"
                f" seeds ({ten / one.spread:.2g} deviations of the base model's images)"
            )
            if one.reference:
                return f"{text}, as the reference records scatter."
            if one.pairs[0] != TEN:
                whose = "at hand" if one.pairs[0] == one.pairs[1] else "that some of the algorithms share"
                text += f" and {_or_more(here)} with the {one.pairs[0]} {whose}"
            if one.algorithms > 1:
                text += (
                    f"; with {one.algorithms} pairs of algorithms beside each other the clearest needs"
                    f" {pairs_for(one.algorithms)} seeds"
                )
            return f"{text}."
    return ""


def _range(one: object, other: object) -> str:
    return str(one) if one == other else f"{one} to {other}"


def _effect(effect: float) -> str:
    return f"{effect:.3g}" if np.isfinite(effect) else "none"


def _or_more(effect: float) -> str:
    return f"{_effect(effect)} or more" if np.isfinite(effect) else "nothing"
