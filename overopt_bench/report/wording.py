"""Words that findings and verdicts share: names, numbers with what they rest on."""

from __future__ import annotations

from dataclasses import dataclass

from overopt_bench.registry import algorithms
from overopt_bench.report.statistics import LEVEL, Difference, Estimate, smallest_p

PROMPTS = {"train": "training prompts", "heldout": "held-out prompts"}
ENOUGH_PAIRS = 6  # below which no p of sign flips reaches LEVEL


@dataclass(frozen=True)
class Sentence:
    """A sentence, and what it lists: a page gives each of the ``items`` a line of its own below the ``lead``."""

    lead: str
    items: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All of it, running on."""
        return f"{self.lead}: {'; '.join(self.items)}." if self.items else self.lead


def name(label: str) -> str:
    """Return the title of the algorithm that is called so; the label itself where it has a tag or is not installed."""
    known = algorithms.classes().get((None, label))
    return known.title or label if known is not None else label


def seeds(count: int) -> str:
    """How many seeds, in words that admit a single one."""
    return "1 seed" if count == 1 else f"{count} seeds"


def p_text(p: float) -> str:
    """A corrected p as it is printed: never as zero, and said where there is none."""
    if not p >= 0:
        return "no p"
    return f"p = {p:.3f} (Holm)" if p >= 0.001 else "p < 0.001 (Holm)"


def interval(found: Estimate, digits: int = 3) -> str:
    """An interval in words."""
    if found.low is None or found.high is None:
        return "no interval"
    return f"95 % interval {found.low:.{digits}f} to {found.high:.{digits}f}"


def wins(found: Difference, unit: str = "pair") -> str:
    """In how many pairs the first is above the second; a tie is half a pair."""
    if found.paired:
        return f"{found.wins:g} of {found.of} {unit}{'' if found.of == 1 else 's'}"
    return f"{found.wins:g} of all {found.of} pairs of runs"


def grounds(found: Difference, p: float, unit: str = "pair") -> str:
    """What a difference rests on: interval, pairs, p after Holm's correction; and that it is Welch's where it is."""
    parts = [interval(found), wins(found, unit), p_text(p)]
    return ", ".join(parts if found.paired else [*parts, "unpaired (Welch), for fewer than two seeds are common"])


def shown(found: Difference, p: float) -> bool:
    """Whether a difference is shown: its p after Holm's correction is at most .05, and its interval leaves zero out.

    Both are False of what is not a number.
    """
    return found.clear and p <= LEVEL


def why_not(found: Difference, unit: str = "pair") -> str:
    """Why a difference whose interval leaves zero out is not shown, as the end of a sentence; empty where it is not so."""
    if not found.clear:
        return ""
    if found.paired and found.count < ENOUGH_PAIRS:
        return (
            f"; the interval leaves zero out, but {found.count} {unit}s give no p below {smallest_p(found.count):.3g}"
        )
    return "; the interval leaves zero out, but not once p is corrected for the number of comparisons"


def few_pairs(counts: list[int]) -> str:
    """What must be known where there are few pairs, as a sentence; empty where there are enough of all."""
    few = sorted({count for count in counts if 2 <= count < ENOUGH_PAIRS})
    if not few:
        return ""
    least = ", ".join(f"{smallest_p(count):.3g} of {count}" for count in few)
    return (
        f"With fewer than six pairs nothing below p = .05 is possible: the smallest two-sided p of n pairs is 2/2^n ({least})."
        " Intervals are of Student's t, which takes the differences to be normal."
    )
