"""The report from synthetic runs whose answer is known, and from damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run

from overopt_bench.errors import UserError
from overopt_bench.report import build_report
from overopt_bench.report.load import find_runs, group_runs
from overopt_bench.report.tables import overoptimization_table, summary_table
from overopt_bench.report.verdicts import verdicts


@pytest.fixture
def results(tmp_path: Path) -> Path:
    out = tmp_path / "results"
    for seed in range(3):
        for algo in ("ddpo", "tdpo_r"):
            write_run(out, algo, seed=seed)
    write_run(out, "base")
    return out


def test_figures_tables_and_page_are_made(results: Path, tmp_path: Path) -> None:
    index = build_report([results], tmp_path / "report")
    names = {p.stem for p in (tmp_path / "report" / "figures").glob("*.png")}
    assert names == {
        "proxy_and_gold_against_queries", "gold_against_proxy", "proxy_and_gold_against_kl", "cross_rewards", "dormant", "diversity",
    }  # fmt: skip
    assert names == {p.stem for p in (tmp_path / "report" / "figures").glob("*.pdf")}
    for suffix in (".csv", ".md", ".tex"):
        assert (tmp_path / "report" / "tables" / f"summary_train{suffix}").stat().st_size > 100
    html = index.read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_summary_reads_peak_and_drop(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    table = summary_table(group).set_index("algorithm")
    assert table.loc["ddpo", "queries at peak"] == "200" and table.loc["tdpo_r", "queries at peak"] == "400"
    assert float(str(table.loc["ddpo", "drop"]).split()[0]) == pytest.approx(0.2, abs=0.02)
    assert float(str(table.loc["tdpo_r", "drop"]).split()[0]) == pytest.approx(0.0, abs=0.01)
    assert float(str(table.loc["ddpo", "gold at matched KL"]).split()[0]) == pytest.approx(0.5, abs=0.05)


def test_overoptimization_is_told_from_improvement(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    table = overoptimization_table(group)
    assert set(table[table.algorithm == "ddpo"].overoptimized) == {"yes"}
    assert set(table[table.algorithm == "tdpo_r"].overoptimized) == {"no"}
    assert set(table["gold rose"]) == {"yes"}


def test_verdict_names_the_better_one_with_its_interval(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    (verdict,) = verdicts(group)
    assert (
        verdict.shown
        and "TDPO-R keeps 0.30" in verdict.text
        and "than DDPO" in verdict.text
        and "3 seeds" in verdict.text
    )


def test_no_verdict_with_fewer_than_three_seeds(results: Path) -> None:
    shutil.rmtree(results / "mini" / "aesthetic" / "ddpo" / "seed2")
    (group,) = group_runs(find_runs([results]))
    (verdict,) = verdicts(group)
    assert not verdict.shown and "no verdict" in verdict.text


def test_no_difference_is_called_none(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "ddpo", seed=seed)
        copy = write_run(tmp_path, "tdpo_r", seed=seed)
        shutil.copy(tmp_path / "mini/aesthetic/ddpo" / f"seed{seed}" / "metrics.jsonl", copy / "metrics.jsonl")
    (group,) = group_runs(find_runs([tmp_path]))
    (verdict,) = verdicts(group)
    assert not verdict.shown and "no difference" in verdict.text


def test_other_budgets_and_parameters_are_kept_apart(results: Path, tmp_path: Path) -> None:
    write_run(results, "ddpo", proxy="imagereward", budget=300)
    write_run(results, "ddpo", seed=7, params={"lr": 0.5})
    groups = group_runs(find_runs([results]))
    assert len(groups) == 3
    index = build_report([results], tmp_path / "report")
    assert index.read_text().count("<section id=") == 4  # three groups and the list of runs


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "metrics.jsonl").write_text(""), "holds no evaluation"),
        (lambda f: (f / "metrics.jsonl").write_bytes((f / "metrics.jsonl").read_bytes()[:-40]), "does not parse"),
        (lambda f: (f / "metrics.jsonl").unlink(), "holds no evaluation"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "status.json").unlink(), "status.json"),
    ],
)
def test_damaged_runs_are_shown_and_not_compared(results: Path, tmp_path: Path, damage, reason: str) -> None:  # type: ignore[no-untyped-def]
    folder = results / "mini" / "aesthetic" / "ddpo" / "seed1"
    damage(folder)
    html = build_report([results], tmp_path / "report").read_text()
    assert "damaged" in html and reason in html
    table = pd.read_csv(tmp_path / "report" / "tables" / "summary_train.csv").set_index("algorithm")
    assert table.loc["ddpo", "seeds"] == 2


def test_interrupted_runs_are_named(results: Path, tmp_path: Path) -> None:
    status = results / "mini" / "aesthetic" / "ddpo" / "seed1" / "status.json"
    status.write_text(json.dumps({"state": "interrupted", "queries": 100, "reason": "interrupted"}))
    assert "state-interrupted" in build_report([results], tmp_path / "report").read_text()


def test_nothing_to_report_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        build_report([tmp_path / "nowhere"], tmp_path / "report")
    with pytest.raises(UserError, match="no run"):
        build_report([tmp_path], tmp_path / "report")
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="none of 1 runs is complete"):
        build_report([tmp_path], tmp_path / "report")
    assert not (tmp_path / "report").exists()
