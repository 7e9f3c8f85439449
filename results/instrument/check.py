"""Ask the report's statistics what is known: of equal methods, of effects whose sign is certain, and how small one may be.

Reads the runs of ``results/reference`` and ``results/instrument`` and prints ``results/instrument/README.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
from common import HERE, REFERENCE, of, table, told
from critic import critics

from overopt_bench.plugins import load_plugins
from overopt_bench.report import readings
from overopt_bench.report.columns import SPLITS
from overopt_bench.report.comparisons import END, FALL
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import Run, find_runs
from overopt_bench.report.readings import Reading
from overopt_bench.report.sensitivity import sensitivities, sensitivity_table
from overopt_bench.report.statistics import Difference, against_zero, corrected, difference
from overopt_bench.report.wording import shown

FAMILIES = 1_000  # resampled ones
FEWEST = 6  # pairs of seeds in one of them
CLOCKS = ("seconds", "time", "per_second")  # parts of the names of numbers that no two runs share
Numbers = dict[int, float]  # by seed


def main() -> None:
    """Print the page."""
    load_plugins([HERE / "twin.py"])
    runs = [run for run in find_runs([REFERENCE, HERE / "mini"]) if run.state in ("complete", "duplicate")]
    ddpo = of(runs, "ddpo", "imagereward", reference=True)
    twin = of(runs, "ddpo_twin", "imagereward")
    page = [
        "# The instrument, tested",
        "",
        "Comparisons whose answer is known, made by the statistics that make every report. `results/instrument.sh` remakes it.",
        "",
        *equal_methods(ddpo, twin),
        *same_stream(ddpo, of(runs, "ddpo [again]", "imagereward")),
        *known_effects(runs, ddpo),
        *smallest_effects(runs),
        *critics(runs),
    ]
    print("\n".join(page))


def questions(rewards: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Reading]]]:
    """The families that a report corrects for: a question on one split, and how it is read off each reward."""
    for split in SPLITS:
        yield split, END, {name: partial(readings.end, key=f"{split}/{name}/mean") for name in rewards}
        yield split, FALL, {name: partial(readings.fall, split=split, gold=name) for name in rewards}


def equal_methods(ddpo: Sequence[Run], twin: Sequence[Run]) -> list[str]:
    """A/A with different streams of sampling noise, as the runs are and resampled."""
    rewards = list(ddpo[0].reward_hashes)
    families, rows, found = [], [], []
    for split, what, asked in questions(rewards):
        family = [tuple(readings.by_seed(runs, reading) for runs in (ddpo, twin)) for reading in asked.values()]
        families.append(family)
        compared = [difference(one, two) for one, two in family]
        ps = corrected(compared)
        found += [*zip(compared, ps, strict=True)]
        rows += [
            {"prompts": split, "what": what, "reward": name, **told(one), "p (Holm)": f"{p:.3f}"}
            for name, one, p in zip(rewards, compared, ps, strict=True)
        ]
    alone, together, unpaired = resampled(families)
    pairs = found[0][0].count
    return [
        "## Equal methods",
        "",
        f"`ddpo` against itself under another name (`ddpo_twin`), with another stream of sampling noise: {pairs} pairs of seeds on"
        f" imagereward, all {len(rewards)} recorded rewards. Of {len(found)} comparisons"
        f" {sum(shown(one, one.p) for one, _ in found)} would be called shown if each stood alone,"
        f" {sum(shown(one, p) for one, p in found)} after Holm's correction for the rewards of a question.",
        "",
        f"Resampled {FAMILIES:,} times, one comparison alone is called shown in **{alone:.1%}** of cases ({FEWEST} to {pairs} of the"
        f" seeds, and in each pair by chance which is which); anything after Holm's correction in **{together:.1%}** of the families of"
        f" one question ({len(rewards)} rewards, all {pairs} pairs); and one comparison of unpaired runs in **{unpaired:.1%}** (Welch:"
        " half of the seeds of one name, the other half of the other). At most 7 % was asked for.",
        "",
        table(pd.DataFrame(rows)),
        "",
    ]


def resampled(families: Sequence[Sequence[tuple[Numbers, ...]]]) -> tuple[float, float, float]:
    """Shares of equal comparisons that are called shown.

    Returns:
        Of single comparisons, with some of the seeds; of families that call anything shown, with all seeds, for of fewer nothing
        could be after the correction; and of single comparisons of unpaired runs.
    """
    generator = np.random.default_rng(0)
    every = [pair for family in families for pair in family]
    seeds = np.array(sorted(every[0][0].keys() & every[0][1].keys()))
    alone, together, unpaired = [], [], []
    for _ in range(FAMILIES):
        swapped = dict(zip(seeds.tolist(), generator.random(len(seeds)) < 0.5, strict=True))
        some = generator.permutation(seeds)[: generator.integers(FEWEST, len(seeds) + 1)].tolist()
        alone += [shown(one, one.p) for one in (swapped_difference(pair, swapped, some) for pair in every)]
        for family in families:
            found = [swapped_difference(pair, swapped, seeds.tolist()) for pair in family]
            together.append(any(map(shown, found, corrected(found))))
        order = generator.permutation(seeds).tolist()
        one_half, other_half = order[: len(order) // 2], order[len(order) // 2 :]
        apart = [difference({s: a[s] for s in one_half}, {s: b[s] for s in other_half}) for a, b in every]
        unpaired += [shown(one, one.p) for one in apart]
    return float(np.mean(alone)), float(np.mean(together)), float(np.mean(unpaired))


def swapped_difference(pair: tuple[Numbers, ...], swapped: dict[int, bool], seeds: Sequence[int]) -> Difference:
    """The paired difference of some seeds, where in some pairs each side stands for the other."""
    one, two = pair
    return against_zero(np.array([(-1) ** swapped[seed] * (one[seed] - two[seed]) for seed in seeds]))


def same_stream(ddpo: Sequence[Run], again: Sequence[Run]) -> list[str]:
    """A/A with the same stream: every recorded number is the same."""
    seeds = [run.config["seed"] for run in again]
    first = [run for run in ddpo if run.config["seed"] in seeds]
    count, unlike = 0, 0
    for one, two in zip(first, again, strict=True):
        here, there = (dict(recorded(run)) for run in (one, two))
        count += len(here.keys() | there.keys())
        unlike += sum(here.get(key) != there.get(key) for key in here.keys() | there.keys())
    return [
        f"With the same stream (`--tag again`, seeds {', '.join(map(str, seeds))}) {unlike} of {count:,} recorded numbers differ.",
        "",
    ]


def recorded(run: Run) -> Iterator[tuple[str, object]]:
    """Every recorded number but times, by its place."""
    for number, line in enumerate((run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        for name, value in json.loads(line).items():
            if not any(clock in name for clock in CLOCKS):
                yield f"{number}/{name}", value


def known_effects(runs: Sequence[Run], ddpo: Sequence[Run]) -> list[str]:
    """Differences whose sign is certain, with six seeds each and nothing else compared."""
    six = list(ddpo[:6])
    truth, slower, (shorter,) = (
        of(runs, label, proxy)
        for label, proxy in (("ddpo", "human"), ("ddpo [slower]", "imagereward"), ("ddpo [shorter]", "imagereward"))
    )
    proxy = "train/imagereward/mean"
    end, early = partial(readings.end, key=proxy), 1536
    kl = partial(readings.end, key="train/path_kl/mean")
    human, fall = partial(readings.end, key="train/human/mean"), partial(readings.fall, split="train", gold="human")
    read = readings.by_seed
    known = [
        ("lr 1e-3 - 7e-4", "proxy at the end", difference(read(six, end), read(slower, end))),
        ("lr 1e-3 - 7e-4", "path KL at the end", difference(read(six, kl), read(slower, kl))),
        ("2,048 - 1,536 queries", "proxy", difference(read(six, end), read(six, lambda run: run.at(proxy, early)))),
        ("trained on human - on imagereward", "human at the end", difference(read(truth, human), read(six, human))),
        ("trained on imagereward - on human", "fall of human", difference(read(six, fall), read(truth, fall))),
    ]
    rows = [
        {"effect": effect, "read": what, "right sign": "+", **told(one), "shown": "yes" if shown(one, one.p) else "no"}
        for effect, what, one in known
    ]
    same = shorter.last(proxy) == six[0].at(proxy, early)
    return [
        "## Known effects",
        "",
        f"Six pairs of seeds each, imagereward. {sum(shown(one, one.p) and one.value > 0 for *_, one in known)} of {len(known)}"
        " are shown with the right sign. What a run is after 1,536 queries is read off the run of 2,048, for nothing in it depends"
        f" on the budget: a run of 1,536 (`--tag shorter`, seed 0) ends at {'the very same' if same else 'ANOTHER'} proxy.",
        "",
        table(pd.DataFrame(rows)),
        "",
    ]


def smallest_effects(runs: Sequence[Run]) -> list[str]:
    """How small a difference ten pairs of seeds would show, on each proxy of the reference records."""
    (group,) = group_runs([run for run in runs if REFERENCE in run.folder.parents])
    return [
        "## The smallest effect",
        "",
        "What ten paired seeds show with a probability of 80 % where two algorithms alone are compared: from the scatter of the"
        " reference records' paired differences, in the quadratic mean over the pairs of algorithms. `overopt-bench report` says it"
        " on every page, of its own runs.",
        "",
        table(sensitivity_table(group, sensitivities(group))),
    ]


if __name__ == "__main__":
    main()
