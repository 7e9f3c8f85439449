"""``overopt-bench report``: from run folders to figures, tables and one page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from overopt_bench.errors import UserError
from overopt_bench.report import curves, figures, page, tables
from overopt_bench.report.aggregates import aggregates_table, where
from overopt_bench.report.cells import write
from overopt_bench.report.comparisons import comparisons, comparisons_table
from overopt_bench.report.critics import critics_table, explained_variance
from overopt_bench.report.differences import differences
from overopt_bench.report.escape import file_name
from overopt_bench.report.filmstrip import Album, filmstrips, stills
from overopt_bench.report.findings import findings, outcomes, outcomes_table
from overopt_bench.report.glance import glance_table
from overopt_bench.report.groups import Group, group_runs, with_styles
from overopt_bench.report.layout import drawing, save
from overopt_bench.report.load import find_runs
from overopt_bench.report.measured import measured, metrics_table
from overopt_bench.report.reference import reference_runs, with_reference
from overopt_bench.report.sensitivity import sensitivities, sensitivity_table
from overopt_bench.report.shared_out import beside
from overopt_bench.report.verdicts import verdicts
from overopt_bench.report.written import read_list, replace_listed

TABLE_NOTE = (
    "Mean over seeds with its 95 % t interval in brackets; a single seed has none, nor has what does not train, which is one"
    " deterministic evaluation. Peaks are located on one half of the images of each prompt and read on the other half, so a"
    " peak can lie below the end; there is none where single images were not kept. Matched columns: where each algorithm"
    " first reaches the smallest final gain of the proxy, or the smallest final path KL, of all."
)
METRICS_NOTE = (
    "Everything that evaluations measure besides the rewards: mean over seeds with its 95 % t interval in brackets; a"
    " single seed has none. The change is that of each seed from its own start."
)
SCALING_NOTE = (
    "The forms of Gao et al. (2022) by least squares, seed by seed, for gold over the base model. Of trained policies d is the"
    " root of the path KL, of selection that of the KL of images: other quantities, whose alpha and beta are not compared. The"
    " logarithmic form does not hold near d = 0; where R2 is low, alpha and beta say nothing."
)
REFERENCE_NOTE = (
    "All runs on a proxy read after equally many queries, the most that each of them has spent; interpolated between"
    " evaluations. Mean over seeds with its 95 % t interval; a single seed has none."
)
PAIRS_NOTE = (
    "Every pair of algorithms on a proxy with three seeds or more. Differences are of runs of equal seeds, which share prompts,"
    " noise and the initial adapter: mean, 95 % t interval, and the p of all sign flips; Welch's interval and p where fewer than"
    " two seeds are common. Equal proxy gain and equal path KL are the most that every run of both reached, and gold is read where"
    " each first gets there. Holm: corrected for all pairs of the same proxy, gold, prompts and question that can be shown. Shown:"
    " corrected p at most .05. With fewer than six pairs nothing below p = .05 is possible, since the smallest p of n pairs is"
    " 2/2^n; these are not counted in the correction of the others (Tarone, 1990)."
)
GLANCE_NOTE = (
    "Means over seeds on the training prompts: the gold's change from start to end, its fall from the cross-fitted peak to the end"
    " with the 95 % t interval, and in how many seeds it fell; * where the p of that fall, corrected (Holm) for the algorithms on"
    " the proxy, is at most .05."
)
SENSITIVITY_NOTE = (
    "How much the differences of equal seeds scatter, in the quadratic mean over the pairs of algorithms, and what follows: the"
    " smallest true difference that is shown with a probability of 80 % where two algorithms alone are compared (differences taken"
    " to be normal). Fewer than six seeds show none. Where several pairs of algorithms stand beside each other, Holm's correction"
    " asks for more: the last column is how many seeds let the clearest pair be shown at all."
)
AGGREGATE_NOTE = (
    "Over every seed on every proxy, in standard deviations of the base model's images: interquartile means of the gold's"
    " change from start to end and of its fall from its peak; the probability that a run ends above the other algorithm's"
    " run of the same seed. In brackets the 95 % interval of 2,000 bootstraps over seeds within each proxy, which with"
    " three seeds a proxy holds the truth about nine times in ten."
)
CRITIC_NOTE = (
    "Of the variance of each epoch's returns, what the critic explained before it was trained on them: mean over epochs, then over"
    " seeds with the 95 % t interval. `overopt-bench ceiling` says how much a critic could explain at all."
)
OUTCOME_NOTE = (
    "The fall from the cross-fitted peak to the end over seeds: mean, 95 % t interval, in how many seeds, and the p of all sign"
    " flips, corrected (Holm) for the algorithms of the same proxy, gold and prompts with six seeds or more. In how many"
    " seeds: rose and fell by more than two standard errors over prompts; overoptimized where the proxy rose and the gold fell from"
    " its peak."
)
SEED_NOTE = (
    "± is one standard error over prompts of the paired difference; yes means more than two. Peaks are read on other images"
    " than they are located on, so a drop can be negative."
)


def build_report(paths: Iterable[Path] | None, out: Path, reference: bool = False) -> Path:
    """Draws everything that the runs at or below ``paths`` allow.

    Args:
        paths: run folders or folders of runs; the user's own in ``results`` where None.
        out: the report's folder, made where it is missing.
        reference: whether the repository's records of the same settings are drawn beside the runs.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: where there are no runs, none that is complete, no records to draw beside them, or where the folder
            holds somebody else's file of the name that the list of its files has.
    """
    runs = find_runs(paths)
    groups = group_runs(runs)
    notes: list[str] = []
    if not groups:
        states = "; ".join(f"{run.folder}: {run.state}{f' ({run.reason})' if run.reason else ''}" for run in runs[:5])
        raise UserError(f"none of {len(runs)} runs is complete, so there is nothing to report: {states}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    before = read_list(out)
    if reference:
        own = {run.folder.resolve() for run in runs}
        groups, notes = with_reference(groups, [run for run in reference_runs() if run.folder.resolve() not in own])
        for note in notes:
            print("note:", note, file=sys.stderr)
    groups = with_styles(groups)
    out.mkdir(parents=True, exist_ok=True)
    contexts = [_group(group, out if len(groups) == 1 else out / file_name(group.name)) for group in groups]
    drawn = [d for g in contexts for d in (*g["figures"], *chain(*g["panels"].values()))]
    page.place_figures(drawn, out)
    index = out / "index.html"
    index.write_text(page.render(contexts, runs, notes), encoding="utf-8", newline="\n")
    tabled = [file for g in contexts for table in (*g["first"], *g["tables"]) for file in table["files"]]
    replace_listed(out, before, [*tabled, *(file for d in drawn for file in d.files)])
    return index


def _group(group: Group, out: Path) -> dict[str, Any]:
    album = Album()
    with drawing():
        drawing_of = partial(_draw, folder=out / "figures")
        jobs, title = list(_figures(group, album)), f"figures of {group.title}"
        made, context = beside(partial(_numbers, group, out, album), drawing_of, jobs, title)
    return context([one for one in made if one is not None])


def _numbers(group: Group, out: Path, album: Album) -> Callable[[list[page.Drawn]], dict[str, Any]]:
    """Everything of a group but its figures: writes the tables; what is given makes the page's part of the figures."""
    happened, compared, able = outcomes(group), comparisons(group), sensitivities(group)

    def tabled(title: str, name: str, note: str, table: pd.DataFrame) -> Iterator[dict[str, Any]]:
        if len(table):
            yield page.table_context(title, note, table, write(table, out / "tables", name))

    first = [*tabled("At a glance", "glance", GLANCE_NOTE, glance_table(group, happened))]
    rest = [
        one for title, name, note, table in (
            ("Beside the reference records", "beside_reference", REFERENCE_NOTE, tables.reference_table(group)),
            ("Training prompts", "summary_train", TABLE_NOTE, tables.summary_table(group, "train")),
            ("Held-out prompts", "summary_heldout", TABLE_NOTE, tables.summary_table(group, "heldout")),
            ("Aggregates over proxies", "aggregates", f"{AGGREGATE_NOTE} {where(group)}.", aggregates_table(group)),
            ("Pairs of algorithms", "comparisons", PAIRS_NOTE, comparisons_table(group, compared)),
            ("What could have been shown", "sensitivity", SENSITIVITY_NOTE, sensitivity_table(group, able)),
            ("Overoptimization, by algorithm", "outcomes", OUTCOME_NOTE, outcomes_table(group, happened)),
            ("Overoptimization, seed by seed", "overoptimization", SEED_NOTE, tables.overoptimization_table(group)),
            ("What the critic explains", "critics", CRITIC_NOTE, critics_table(group)),
            ("Metrics, training prompts", "metrics_train", METRICS_NOTE, metrics_table(group, "train")),
            ("Metrics, held-out prompts", "metrics_heldout", METRICS_NOTE, metrics_table(group, "heldout")),
            ("Gold against d = sqrt(KL), fitted", "scaling", SCALING_NOTE, tables.scaling_table(group)),
        ) for one in tabled(title, name, note, table)
    ]  # fmt: skip
    found, said, strips = findings(group, happened), verdicts(group, compared, happened, able), filmstrips(group, album)
    return lambda drawn: page.group_context(group, found, said, drawn, first, rest, strips)


@dataclass(frozen=True)
class Job:
    """A figure to draw: its title, the name of its files, the proxy where it shows one only, and how it is made."""

    title: str
    name: str
    proxy: str | None
    make: Callable[[], Figure | None]


def _draw(job: Job, folder: Path) -> page.Drawn | None:
    figure = job.make()
    return None if figure is None else page.Drawn(job.title, save(figure, folder, job.name), job.proxy)


def _figures(group: Group, album: Album) -> Iterator[Job]:
    """List what can be drawn of a group: figures of all proxies, then those of each."""
    both = partial(curves.proxy_and_gold, group)
    yield Job("Proxy and gold against queries", "proxy_and_gold_against_queries", None, both)
    yield Job("Differences at equal seeds", "differences", None, partial(differences, group))
    yield Job("Gold against proxy", "gold_against_proxy", None, partial(curves.gold_against_proxy, group))
    yield Job("Proxy and gold against sqrt(KL)", "proxy_and_gold_against_kl", None, partial(curves.against_kl, group))
    images = partial(curves.against_image_kl, group)
    yield Job("Proxy and gold against sqrt(image KL)", "proxy_and_gold_against_image_kl", None, images)
    if cross := tables.cross_table(group):
        yield Job("Trained on, scored by", "cross_rewards", None, partial(figures.cross_rewards, group, cross))
    yield Job("Performance profiles", "performance_profiles", None, partial(figures.performance_profile, group))
    yield Job("What the critic explains", "explained_variance", None, partial(explained_variance, group))
    for metric in measured(group):
        yield Job(metric.title, f"metric_{metric.name}", None, partial(curves.metric, group, metric))
    for proxy in group.proxies():
        dormant = partial(figures.dormant, group, proxy)
        yield Job(f"Dormant critic neurons, trained on {proxy}", f"dormant_{proxy}", proxy, dormant)
        pictures = partial(_stills, group, proxy, album)
        yield Job(f"Start, peak and end, trained on {proxy}", f"stills_{proxy}", proxy, pictures)


def _stills(group: Group, proxy: str, album: Album) -> Figure | None:
    images = stills(group, proxy, album)
    return figures.stills(group, proxy, images) if images else None
