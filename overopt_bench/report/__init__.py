"""``overopt-bench report``: from run folders to figures, tables and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overopt_bench.errors import UserError
from overopt_bench.report import figures, page, tables
from overopt_bench.report.filmstrip import filmstrips, stills
from overopt_bench.report.load import Group, find_runs, group_runs
from overopt_bench.report.verdicts import verdicts

TABLE_NOTE = (
    "Mean over seeds with its 95 % t interval in brackets; a single seed has none. Peaks are located on one half of the images"
    " and read on the other. Matched columns: where each algorithm first reaches the smallest final"
    " proxy, or path KL, of all."
)
SCALING_NOTE = (
    "The forms of Gao et al. (2022) by least squares, seed by seed, for gold over the base model. The logarithmic form does"
    " not hold near d = 0; where R2 is low, alpha and beta say nothing."
)
SEED_NOTE = "± is one standard error of the paired difference over images; yes means more than two."


def build_report(paths: list[Path], out: Path) -> Path:
    """Draw everything that the runs at or below ``paths`` allow.

    Returns:
        The path of ``index.html``.

    Raises:
        UserError: where there are no runs, or none that is complete.
    """
    runs = find_runs(paths)
    groups = group_runs(runs)
    if not groups:
        states = "; ".join(f"{run.folder}: {run.state}{f' ({run.reason})' if run.reason else ''}" for run in runs[:5])
        raise UserError(f"none of {len(runs)} runs is complete, so there is nothing to report: {states}")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    out.mkdir(parents=True, exist_ok=True)
    contexts = [_group(group, out if len(groups) == 1 else out / group.name) for group in groups]
    index = out / "index.html"
    index.write_text(page.render(contexts, runs), encoding="utf-8")
    return index


def _group(group: Group, out: Path) -> dict[str, Any]:
    drawn: list[tuple[str, Path]] = []

    def draw(title: str, name: str, figure: Any) -> None:
        if figure is not None:
            drawn.append((title, figures.save(figure, out / "figures", name.replace(":", "-"))))

    draw("Proxy and gold against queries", "proxy_and_gold_against_queries", figures.proxy_and_gold(group))
    draw("Gold against proxy", "gold_against_proxy", figures.gold_against_proxy(group))
    draw("Proxy and gold against sqrt(KL)", "proxy_and_gold_against_kl", figures.against_kl(group))
    cross = tables.cross_table(group)
    draw("Trained on, scored by", "cross_rewards", figures.cross_rewards(group, cross) if cross else None)
    draw("Diversity", "diversity", figures.diversity(group))
    for proxy in group.proxies():
        draw(f"Dormant critic neurons, trained on {proxy}", f"dormant_{proxy}", figures.dormant(group, proxy))
        if images := stills(group, proxy):
            draw(f"Start, peak and end, trained on {proxy}", f"stills_{proxy}", figures.stills(group, proxy, images))
    shown = []
    for split, title in (("train", "Training prompts"), ("heldout", "Held-out prompts")):
        table = tables.summary_table(group, split)
        if len(table):
            tables.write(table, out / "tables", f"summary_{split}")
            shown.append(page.table_context(title, TABLE_NOTE, table))
    seeds = tables.overoptimization_table(group)
    if len(seeds):
        tables.write(seeds, out / "tables", "overoptimization")
        shown.append(page.table_context("Overoptimization, seed by seed", SEED_NOTE, seeds))
    fits = tables.scaling_table(group)
    if len(fits):
        tables.write(fits, out / "tables", "scaling")
        shown.append(page.table_context("Gold against d = sqrt(path KL), fitted", SCALING_NOTE, fits))
    return page.group_context(group, verdicts(group), drawn, shown, filmstrips(group))
