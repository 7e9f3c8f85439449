"""Sentences: what a comparison shows, and what it does not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from overopt_bench.report.load import REFERENCES, Group, Run
from overopt_bench.stats import difference, probability_of_improvement

ENOUGH = 3  # seeds of each algorithm below which no verdict is given
NAMES = {
    "ddpo": "DDPO",
    "alignprop": "AlignProp",
    "tdpo": "TDPO",
    "tdpo_r": "TDPO-R",
    "base": "The base model",
    "best_of_n": "Best-of-n",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence about two algorithms on one proxy; ``shown`` is False where nothing was shown."""

    proxy: str
    text: str
    shown: bool


def name(label: str) -> str:
    """An algorithm's name as in its paper."""
    return NAMES.get(label, label)


def verdicts(group: Group, split: str = "train") -> list[Verdict]:
    """A sentence for each pair of trained algorithms on each proxy."""
    found = []
    for proxy in group.proxies():
        labels = [label for label in group.labels(proxy) if label not in REFERENCES]
        few = [label for label in labels if len(group.of(proxy, label)) < ENOUGH]
        if few and len(labels) > 1:
            counts = ", ".join(f"{name(label)} {len(group.of(proxy, label))}" for label in few)
            found.append(
                Verdict(proxy, f"On {proxy} no verdict is given for {counts}: fewer than {ENOUGH} seeds.", False)
            )
        for a, b in combinations([label for label in labels if label not in few], 2):
            found.append(_compare(group, proxy, a, b, split))
    return found


def _ends(runs: list[Run], key: str) -> np.ndarray:
    return np.array([run.last(key) for run in runs], float)


def _compare(group: Group, proxy: str, a: str, b: str, split: str) -> Verdict:
    first, second = group.of(proxy, a), group.of(proxy, b)
    seeds = min(len(first), len(second))
    key = f"{split}/{group.gold}/mean"
    one, two = _ends(first, key), _ends(second, key)
    estimate = difference(one, two)
    if estimate.value < 0:
        a, b, one, two = b, a, two, one
        estimate = difference(one, two)
    assert estimate.low is not None and estimate.high is not None
    interval = f"95 % interval {estimate.low:.3f} to {estimate.high:.3f}, {seeds} seeds"
    chance = probability_of_improvement(one, two)
    if estimate.low <= 0:
        return Verdict(
            proxy,
            f"On {proxy} no difference in {group.gold} at the end was shown between {name(a)} and {name(b)}"
            f" ({estimate.value:+.3f}, {interval}).",
            False,
        )
    return Verdict(
        proxy,
        f"On {proxy}, {name(a)} keeps {estimate.value:.3f} more gold ({group.gold}) than {name(b)} at the end"
        f" ({interval}; a run of it is the better one with probability {chance:.2f}).", True,
    )  # fmt: skip
