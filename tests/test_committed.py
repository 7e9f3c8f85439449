"""What is written of the committed records is what the committed records say."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path

import pandas as pd
import pytest
from markupsafe import escape

from overopt_bench.report.cells import write
from overopt_bench.report.comparisons import comparisons, comparisons_table
from overopt_bench.report.critics import critics_table
from overopt_bench.report.findings import findings, outcomes, outcomes_table
from overopt_bench.report.glance import glance_table
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import Run, find_runs
from overopt_bench.report.sensitivity import sensitivities, sensitivity_table
from overopt_bench.report.verdicts import verdicts
from overopt_bench.report.written import LIST, read_list

RESULTS = Path(__file__).parent.parent / "results"
RECORDS = RESULTS / "reference" / "mini"


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    return find_runs([RECORDS])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["report", "report-imagereward"])
def test_tables_and_sentences_of_the_pages_follow_from_the_records(name: str, runs: list[Run], tmp_path: Path) -> None:
    """Whoever changes a record, or how it is read, makes the pages again: ``results/reference.sh`` ends with how."""
    assert {run.state for run in runs} == {"complete"}
    (group,) = group_runs([run for run in runs if name == "report" or run.proxy == "imagereward"])
    happened, compared, able = outcomes(group), comparisons(group), sensitivities(group)
    tables: dict[str, pd.DataFrame] = {
        "glance": glance_table(group, happened),
        "outcomes": outcomes_table(group, happened),
        "comparisons": comparisons_table(group, compared),
        "sensitivity": sensitivity_table(group, able),
        "critics": critics_table(group),
    }
    committed = RESULTS / "reference" / name / "tables"
    for called, table in tables.items():
        if table.empty:
            assert not (committed / f"{called}.md").exists()
            continue
        write(table, tmp_path, called)
        made, there = ((folder / f"{called}.md").read_text(encoding="utf-8") for folder in (tmp_path, committed))
        assert made == there, called
    html = (RESULTS / "reference" / name / "index.html").read_text(encoding="utf-8")
    sentences = [*findings(group, happened), *verdicts(group, compared, happened, able)]
    assert len(sentences) > 2
    for part in chain.from_iterable((one.said.lead, *one.said.items) for one in sentences):
        assert str(escape(part)) in html


@pytest.mark.parametrize("name", ["report", "report-imagereward"])
def test_beside_a_page_are_its_own_figures_and_tables_alone(name: str) -> None:
    folder = RESULTS / "reference" / name
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there - {LIST, "index.html"} == read_list(folder)


def test_the_table_of_seeds_is_that_of_the_records(runs: list[Run]) -> None:
    algorithms = ["ddpo", "alignprop", "tdpo", "tdpo_r", "nft", "best_of_n", "base"]
    lines = [f"| proxy | {' | '.join(algorithms)} |", "|---" * (1 + len(algorithms)) + "|"]
    for proxy in sorted({run.proxy for run in runs}):
        own = [sorted(run.config["seed"] for run in runs if (run.proxy, run.algo) == (proxy, a)) for a in algorithms]
        lines.append(f"| {proxy} | {' | '.join(map(span, own))} |")
    assert "\n".join(lines) + "\n" in (RESULTS / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_that_of_the_page() -> None:
    """The fall of the truth on each proxy, and in how many seeds it fell."""
    glance = pd.read_csv(RESULTS / "reference" / "report" / "tables" / "glance.csv", dtype=str)
    labels = [column for column in glance.columns if column.startswith("by ") and ", " not in column]
    names = [f"`{label.removeprefix('by ')}`" for label in labels]
    lines = [f"| trained on | {' | '.join(names)} |", "|---" * (1 + len(labels)) + "|"]
    falls, counts = (glance[glance.what == what].set_index("trained on") for what in ("fall from its peak", "fell in"))
    for proxy in falls.index:
        cells = [
            "-" if pd.isna(fall) else f"{float(fall):.3f} ({count})".replace("*", "\\*")
            for fall, count in zip(falls.loc[proxy, labels], counts.loc[proxy, labels], strict=True)
        ]
        lines.append(f"| {proxy} | {' | '.join(cells)} |")
    assert "\n".join(lines) + "\n" in (RESULTS.parent / "README.md").read_text(encoding="utf-8")


def span(seeds: list[int]) -> str:
    """Seeds as the table names them: ``0 to 9``, a single one, or a dash for none."""
    assert all(b == a + 1 for a, b in pairwise(seeds)), seeds
    return "-" if not seeds else str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
