"""The repository's own records beside a user's runs: where they are, and which have the same settings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from overopt_bench.errors import UserError
from overopt_bench.report.groups import Group, differences_in_words, group_runs
from overopt_bench.report.load import Run, find_runs

RECORDS = Path("results", "reference")
# A run does the same up to any number of queries, however long it goes on and however often it is looked at; so
# records of another budget are drawn to their own end, and numbers are compared where all of them still have some.
MAY_DIFFER = {"budget", "eval_points"}


def reference_runs() -> list[Run]:
    """The committed records: of the checkout that is the current folder, else of the one that the package is in.

    Raises:
        UserError: where there is neither, as with an installed wheel.
    """
    for folder in (RECORDS, Path(__file__).parents[2] / RECORDS):
        if folder.is_dir():
            return find_runs([folder])
    raise UserError(
        f"--reference needs {RECORDS}, which comes with a checkout of the repository and not with the installed package;"
        " change to a checkout, or leave --reference out"
    )


def with_reference(groups: list[Group], records: list[Run]) -> tuple[list[Group], list[str]]:
    """Puts beside each group the records that have its settings and its proxies.

    Returns:
        The groups, and a sentence about each for which there is no fitting record.
    """
    references = group_runs(records)
    if not references:
        return groups, ["there is no reference record that is not among the runs already"]
    found = [_nearest(group, references) for group in groups]
    return [group for group, _ in found], [note for _, note in found if note]


def _nearest(group: Group, references: list[Group]) -> tuple[Group, str]:
    suite = group.settings["suite"]
    same_suite = [reference for reference in references if reference.settings["suite"] == suite]
    if not same_suite:
        there = ", ".join(sorted({str(reference.settings["suite"]) for reference in references}))
        return group, f"{group.title}: no reference record is of the suite {suite}; there are records of {there}"
    best = min(same_suite, key=lambda reference: (len(_differences(group, reference)), -len(reference.runs)))
    if differences := _differences(group, best):
        return group, f"{group.title}: no reference record has these settings; they differ in {'; '.join(differences)}"
    runs = tuple(run for run in best.runs if run.proxy in group.proxies())
    if not runs:
        return group, (
            f"{group.title}: no reference record was trained on {', '.join(group.proxies())};"
            f" there are records on {', '.join(best.proxies())}"
        )
    return replace(group, reference=replace(best, runs=runs)), ""


def _differences(group: Group, reference: Group) -> list[str]:
    """The settings that keep two groups from being drawn together, in words."""
    differences = differences_in_words(group.settings, reference.settings, MAY_DIFFER)
    other = _other_rewards(group, reference)
    return differences + ([f"the weights of {', '.join(other)}"] if other else [])


def _other_rewards(group: Group, reference: Group) -> list[str]:
    """Rewards of the same name and other weights: the same word for another number."""
    ours, theirs = _reward_hashes(group), _reward_hashes(reference)
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name].isdisjoint(theirs[name]))


def _reward_hashes(group: Group) -> dict[str, set[str | None]]:
    found: dict[str, set[str | None]] = {}
    for run in group.runs:
        for name, digest in run.reward_hashes.items():
            found.setdefault(name, set()).add(digest)
    return found


def other_parameters(group: Group) -> list[str]:
    """For each algorithm that the group and its reference share, which parameters differ, in words."""
    found = {}
    for run in group.runs:
        for other in group.reference.of(run.proxy, run.label) if group.reference else ():
            here, there = (dict(one.config.get("params", {})) for one in (run, other))
            differences = differences_in_words(here, there)
            if differences:
                found[run.label] = f"{run.label} has other parameters than its reference: {'; '.join(differences)}."
    return list(found.values())
