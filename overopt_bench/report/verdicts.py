"""Sentences that answer what a user asks of two algorithms, and where a user should stop."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from overopt_bench.report.columns import SPLITS
from overopt_bench.report.comparisons import ENOUGH, FALL, QUESTIONS, Comparison
from overopt_bench.report.findings import Outcome, stopping
from overopt_bench.report.groups import Group
from overopt_bench.report.sensitivity import Sensitivity, sensitivity_sentence
from overopt_bench.report.wording import PROMPTS, Sentence, few_pairs, grounds, name, why_not

STANDS = SHOWN_ABOVE, CLEAR_ABOVE, NO_DIFFERENCE, SHOWN_BELOW, CLEAR_BELOW = (
    "shown against", "by the interval alone against", "no difference was shown from", "shown to be below",
    "by the interval alone below",
)  # fmt: skip
MANY = 12  # comparisons on training prompts that have a sentence each; of more, one says who is first by each question


@dataclass(frozen=True)
class Verdict:
    """One sentence about algorithms on one proxy; ``shown`` is False where nothing was shown."""

    proxy: str
    said: Sentence
    shown: bool


def verdicts(
    group: Group, found: Sequence[Comparison], happened: Sequence[Outcome], able: Sequence[Sensitivity]
) -> list[Verdict]:
    """Say what the comparisons show, question by question, what they could have shown, and then where to stop.

    Sentences are about the training prompts, and add what held-out prompts say where these were recorded.

    Args:
        group: what was compared.
        found: the comparisons of its algorithms.
        happened: the outcomes of its algorithms, for where to stop.
        able: how small a difference could have been shown.
    """
    together: dict[tuple[str, str], list[Comparison]] = {}
    for one in found:
        together.setdefault((one.proxy, one.gold), []).append(one)
    many = sum(one.split == "train" for one in found) > MANY
    counts = [one.difference.count for one in found if one.difference.paired] + [one.fall.count for one in happened]
    stops = stopping(group, happened)
    sentences = [Verdict("", Sentence(text), False)] if (text := few_pairs(counts)) else []
    for proxy in group.proxies():
        sentences += _too_few(group, proxy)
        for (of, gold), same in together.items():
            if of == proxy:
                called = f"{group.role(gold)} ({gold})"
                sentences += _leaders(same, called) if many else _each(same, called, happened)
        known = (sensitivity_sentence(able, proxy, gold) for gold in group.golds(proxy))
        sentences += [Verdict(proxy, Sentence(text), False) for text in known if text]
        sentences += [Verdict(proxy, said, fell) for of, said, fell in stops if of == proxy]
    return sentences


def _too_few(group: Group, proxy: str) -> list[Verdict]:
    labels = group.trained(proxy)
    few = [label for label in labels if len(group.of(proxy, label)) < ENOUGH]
    if not few or not (len(labels) > 1 or group.reference):
        return []
    counts = ", ".join(f"{name(label)} has {len(group.of(proxy, label))}" for label in few)
    return [Verdict(proxy, Sentence(f"On {proxy} no verdict is given without {ENOUGH} seeds: {counts}."), False)]


def _each(same: Sequence[Comparison], gold: str, happened: Sequence[Outcome]) -> list[Verdict]:
    """A sentence for each question and pair; falls are compared only where something fell."""
    proxy, reward = same[0].proxy, same[0].gold
    fell = {name(one.label) for one in happened if (one.proxy, one.gold) == (proxy, reward) and one.fell_at_all}
    held_out = {
        (one.question, frozenset((one.more, one.less))): one for one in same if one.split != "train"
    }  # fmt: skip
    return [
        _sentence(one, gold, held_out.get((one.question, frozenset((one.more, one.less)))))
        for question in QUESTIONS for one in same
        if one.question == question and one.split == "train" and (question != FALL or fell & {one.more, one.less})
    ]  # fmt: skip


def _sentence(one: Comparison, gold: str, held_out: Comparison | None) -> Verdict:
    found = one.difference
    what = grounds(found, one.p)
    if one.question == FALL:
        fact = f"the {gold} of {one.more} fell by {found.value:.3f} more than that of {one.less}"
        subject = f"the fall of the {gold}"
    else:
        fact = f"{one.more} has {found.value:.3f} more of the {gold} than {one.less} {one.where}"
        subject = f"the {gold} {one.where}"
    if one.shown:
        text = f"On {one.proxy}, {fact} ({what})"
    else:
        text = (
            f"On {one.proxy} no difference in {subject} was shown between {one.more} and {one.less}"
            f" ({found.value:+.3f}, {what}){why_not(found)}"
        )
    if held_out is not None:
        other = held_out.difference
        sign = 1 if held_out.more == one.more else -1
        was = "shown" if held_out.shown else "not shown"
        about = f"{held_out.more} - {held_out.less}" if sign < 0 else "likewise"
        text += f"; on held-out prompts {about} {other.value:+.3f} ({grounds(other, held_out.p)}), {was}"
    return Verdict(one.proxy, Sentence(f"{text}."), one.shown)


def _leaders(same: Sequence[Comparison], gold: str) -> list[Verdict]:
    """On a proxy and gold, who is first by each question: a sentence for each split, which lists the questions."""
    found = []
    for split in SPLITS:
        own = [one for one in same if one.split == split]
        if not own:
            continue
        questions = [[one for one in own if one.question == question] for question in QUESTIONS]
        clauses = tuple(_leader(asked) for asked in questions if any(one.difference.clear for one in asked))
        count, clear = (sum(marks) for marks in ([o.shown for o in own], [o.difference.clear for o in own]))
        lead = (
            f"On {own[0].proxy} by the {gold} on {PROMPTS[split]} {count} of {len(own)} comparisons are shown, {clear} have an"
            " interval that leaves zero out"
        )
        found.append(Verdict(own[0].proxy, Sentence(lead if clauses else f"{lead}.", clauses), count > 0))
    return found


def _leader(same: Sequence[Comparison]) -> str:
    """Who is first by one question, how it stands to each other algorithm, and by how much it leads the nearest."""
    ahead = Counter(one.more for one in same)  # equal gains and KLs are those of each pair, so levels alone do not tell
    first = max(same, key=lambda one: (ahead[one.more], one.level)).more
    rivals = {one.less if one.more == first else one.more: one for one in same if first in (one.more, one.less)}
    stands: dict[str, list[str]] = {words: [] for words in STANDS}
    for rival, one in rivals.items():
        stands[_stands(first, one)].append(rival)
    said = [f"{words} {', '.join(names)}" for words, names in stands.items() if names]
    near, one = min(rivals.items(), key=lambda item: item[1].difference.value * (1 if item[1].more == first else -1))
    all_below = all(one.more == first for one in rivals.values())
    if one.question == FALL:
        says = "falls most" if all_below else "falls more than most"
    else:
        says = f"is {'highest' if all_below else 'higher than most'} {one.question}"
    far = f"{near} is above it" if one.more == near else f"nearest is {near},"
    return f"{first} {says} ({', '.join(said)}); {far} by {one.difference.value:.3f} ({grounds(one.difference, one.p)})"


def _stands(first: str, one: Comparison) -> str:
    if not one.difference.clear:
        return NO_DIFFERENCE
    if one.more == first:
        return SHOWN_ABOVE if one.shown else CLEAR_ABOVE
    return SHOWN_BELOW if one.shown else CLEAR_BELOW
