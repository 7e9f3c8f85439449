"""The table that a page about several proxies begins with, against curves written by hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run

from overopt_bench.report import build_report
from overopt_bench.report.cells import show
from overopt_bench.report.findings import outcomes
from overopt_bench.report.glance import glance_table
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs

SEEDS = range(8)


def table(folder: Path) -> pd.DataFrame:
    (group,) = group_runs(find_runs([folder]))
    return glance_table(group, outcomes(group))


@pytest.fixture
def several(tmp_path: Path) -> Path:
    """DDPO on two proxies, TDPO-R on one; the gold of DDPO rises by .2 and falls back, that of TDPO-R rises by .3."""
    for seed in SEEDS:
        write_run(tmp_path, "ddpo", proxy="aesthetic", seed=seed)
        write_run(tmp_path, "tdpo_r", proxy="aesthetic", seed=seed)
        write_run(tmp_path, "base", proxy="aesthetic", seed=seed)
    for seed in range(3):
        write_run(tmp_path, "ddpo", proxy="what", seed=seed)
    return tmp_path


def test_a_row_says_what_became_of_the_gold_on_a_proxy(several: Path) -> None:
    """0.5 - 0.5 and 0.8 - 0.5 from start to end; 0.7 - 0.5 from the peak; shown by eight seeds, which three cannot."""
    found = table(several)
    assert list(found.columns) == [
        "gold",
        "what",
        "trained on",
        "by ddpo",
        "by tdpo_r",
    ]  # the base model is not trained
    rows = {(row["what"], row["trained on"]): row for _, row in found.iterrows()}
    assert len(rows) == len(found) == 3 * 2
    change = rows["start to end", "aesthetic"]
    assert [change[f"by {algo}"].value for algo in ("ddpo", "tdpo_r")] == pytest.approx([0.0, 0.3], abs=0.01)
    falls = [rows["fall from its peak", proxy]["by ddpo"].value for proxy in ("aesthetic", "what")]
    assert falls == pytest.approx([0.2, 0.2], abs=0.02)
    assert [rows["fell in", proxy]["by ddpo"] for proxy in ("aesthetic", "what")] == ["8 of 8*", "3 of 3"]
    assert "*" not in rows["fell in", "aesthetic"]["by tdpo_r"] and show(rows["fell in", "what"]["by tdpo_r"]) == "-"


def test_an_algorithm_may_be_called_as_a_column_is(several: Path) -> None:
    for seed in SEEDS:
        write_run(several, "what", proxy="aesthetic", seed=seed)
    found = table(several)
    assert {*found["what"]} == {"start to end", "fall from its peak", "fell in"} and "by what" in found


def test_it_comes_before_the_sentences_and_each_proxy_has_a_heading(several: Path, tmp_path: Path) -> None:
    page = build_report([several], tmp_path / "report").read_text(encoding="utf-8")
    assert page.index("<h3>At a glance</h3>") < page.index("What happened to the gold")
    assert page.index("<h4>Trained on aesthetic</h4>") < page.index("<h4>Trained on what</h4>")
    written = (tmp_path / "report/tables/glance.md").read_text().replace("\\", "")
    assert "| aesthetic | 8 of 8* |" in written and "| what | 3 of 3 | - |" in written


def test_of_one_proxy_the_sentences_are_enough(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "ddpo", seed=seed)
    assert table(tmp_path).empty
    page = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "At a glance" not in page and "<h4>" not in page
