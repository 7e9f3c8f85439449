"""The report from synthetic runs whose answer is known, and from damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_runs import write_run
from scipy import stats as scipy_stats

from overopt_bench.errors import UserError
from overopt_bench.report import build_report
from overopt_bench.report.cells import write
from overopt_bench.report.comparisons import comparisons
from overopt_bench.report.findings import outcomes, outcomes_table
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.sensitivity import sensitivities
from overopt_bench.report.statistics import Estimate
from overopt_bench.report.tables import overoptimization_table, summary_table
from overopt_bench.report.verdicts import Verdict, verdicts


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
        "proxy_and_gold_against_queries", "gold_against_proxy", "proxy_and_gold_against_kl", "cross_rewards",
        "metric_kl", "metric_diversity", "dormant_aesthetic", "stills_aesthetic", "differences",
    }  # fmt: skip
    assert names == {p.stem for p in (tmp_path / "report" / "figures").glob("*.pdf")}
    for suffix in (".csv", ".md", ".tex"):
        assert (tmp_path / "report" / "tables" / f"summary_train{suffix}").stat().st_size > 100
    html = index.read_text()
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_summary_reads_peak_and_drop(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    table = summary_table(group).set_index("algorithm")
    assert table.loc["ddpo", "queries at peak"] == 200 and table.loc["tdpo_r", "queries at peak"] == 400
    assert table.loc["ddpo", "drop"].value == pytest.approx(0.2, abs=0.02)
    assert table.loc["tdpo_r", "drop"].value == pytest.approx(0.0, abs=0.01)
    assert table.loc["base", "gold at end"].low is None and table.loc["base", "gold at peak"].low is None
    assert table.loc["ddpo", "gold at matched KL"].value == pytest.approx(0.5, abs=0.05)


def test_tables_on_disk_are_numbers_for_programs_and_words_for_people(results: Path, tmp_path: Path) -> None:
    build_report([results], tmp_path / "report")
    tables = tmp_path / "report" / "tables"
    row = pd.read_csv(tables / "summary_train.csv").set_index("algorithm").loc["ddpo"]
    ends = [
        json.loads((results / f"mini/aesthetic/ddpo/seed{s}/metrics.jsonl").read_text().splitlines()[-1])
        for s in range(3)
    ]
    values = np.array([end["train/human/mean"] for end in ends])
    assert row["gold at end"] == pytest.approx(values.mean())
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval()
    assert (row["gold at end, low"], row["gold at end, high"]) == (pytest.approx(low), pytest.approx(high))
    assert f"{values.mean():.3f} [{low:.3f}, {high:.3f}]" in (tables / "summary_train.md").read_text()
    seeds = pd.read_csv(tables / "overoptimization.csv")
    assert seeds["gold drop from peak, error"].between(0, 0.1).all()
    tex = (tables / "overoptimization.tex").read_text()
    assert r"$\pm$" in tex and "tdpo\\_r" in tex


def test_gold_against_distance_is_fitted_with_the_published_form(results: Path, tmp_path: Path) -> None:
    """The made-up runs have d = 0, 1, 2, 3, 4 and ddpo's gold 0, 0.1, 0.2, 0.1, 0 over its start."""
    build_report([results], tmp_path / "report")
    row = pd.read_csv(tmp_path / "report" / "tables" / "scaling.csv").set_index("algorithm").loc["ddpo"]
    d, gain = np.arange(1.0, 5), np.array([0.1, 0.2, 0.1, 0.0])
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * np.log(d)], 1), gain, rcond=None)
    assert (row["alpha"], row["beta"]) == (pytest.approx(alpha, abs=0.02), pytest.approx(-minus_beta, abs=0.02))
    assert 0 < row["R2"] < 1


def test_negative_numbers_have_a_minus_in_latex(tmp_path: Path) -> None:
    write(pd.DataFrame({"a": [Estimate(-0.5, -1.0, 0.25, 3), None]}), tmp_path, "t")
    assert r"$-$0.500 [$-$1.000, 0.250] \\" in (tmp_path / "t.tex").read_text()


def test_the_same_run_in_two_folders_is_one_seed(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "mini/aesthetic/ddpo/seed0", results / "copies/seed0")
    html = build_report([results], tmp_path / "report").read_text()
    table = pd.read_csv(tmp_path / "report" / "tables" / "summary_train.csv").set_index("algorithm")
    assert table.loc["ddpo", "seeds"] == 3
    assert "state-duplicate" in html.split("</style>")[1]


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:60], lambda raw: b"no picture", lambda raw: raw[:40] + b"x" * 30 + raw[70:]]
)
def test_a_damaged_picture_costs_its_frame_and_nothing_else(results: Path, tmp_path: Path, damage) -> None:
    picture = results / "mini/aesthetic/ddpo/seed0/images/0000200.png"
    picture.write_bytes(damage(picture.read_bytes()))
    html = build_report([results], tmp_path / "report").read_text()
    assert '"queries": 100' in html


def test_overoptimization_is_told_from_improvement(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    table = overoptimization_table(group)
    assert set(table[table.algorithm == "ddpo"].overoptimized) == {"yes"}
    assert set(table[table.algorithm == "tdpo_r"].overoptimized) == {"no"}
    assert set(table["gold rose"]) == {"yes"}


def test_the_fall_is_tabled_with_its_p_and_where_to_stop(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    table = outcomes_table(group, outcomes(group)).set_index("algorithm")
    assert table.loc["ddpo", "fall from the peak"].value == pytest.approx(0.2, abs=0.01)
    assert table.loc["ddpo", "fell"] == "3 of 3 seeds" and table.loc["tdpo_r", "fell"] == "0 of 3 seeds"
    assert table.loc["ddpo", "p"] == "0.2500" and table.loc["ddpo", "p (Holm)"] == "0.5000"  # of two algorithms
    assert table.loc["ddpo", "queries at peak"].value == 200
    assert table.loc["ddpo", "proxy at peak"].value == pytest.approx(2, abs=0.1)


def said(group: Group) -> list[Verdict]:
    return verdicts(group, comparisons(group), outcomes(group), sensitivities(group))


def test_verdicts_answer_in_order_with_number_interval_pairs_and_p(results: Path) -> None:
    for seed in range(3, 6):
        for algo in ("ddpo", "tdpo_r"):
            write_run(results, algo, seed=seed)
    (group,) = group_runs(find_runs([results]))
    fall, gain, kl, end, able, stop = said(group)
    assert (
        "the truth (human) of DDPO fell by 0.20" in fall.said.text
        and "more than that of TDPO-R (95 % interval" in fall.said.text
    )
    assert "TDPO-R has 0.30" in gain.said.text and "at equal proxy gain (+4.000)" in gain.said.text
    assert "at equal path KL (16 nats)" in kl.said.text
    assert "more of the truth (human) than DDPO at the end (95 % interval 0.300 to 0.300" in end.said.text
    assert all("6 of 6 pairs, p = 0.031 (Holm)" in one.said.text and one.shown for one in (fall, gain, kl, end))
    assert able.said.text.startswith("On aesthetic one comparison of human at the end shows, four times in five,")
    assert stop.said.text.startswith(
        "Where to stop on aesthetic by the truth human: DDPO after 200 queries (95 % interval 200 to 200,"
    )
    proxies = [run.curve("train/aesthetic/mean")[1] for run in group.of("aesthetic", "ddpo")]
    then, last = (np.mean([values[point] for values in proxies]) for point in (2, -1))
    assert f"6 seeds), where the proxy says {then:.3f} and at the end {last:.3f};" in stop.said.text
    assert stop.said.text.endswith("no earlier than the budget's end with TDPO-R, whose truth was not seen to fall.")


def test_three_pairs_show_nothing_and_the_page_says_why(results: Path) -> None:
    (group,) = group_runs(find_runs([results]))
    first, *others, _ = said(group)
    assert (
        "With fewer than six pairs nothing below p = .05 is possible" in first.said.text
        and "(0.25 of 3)" in first.said.text
    )
    assert not any(one.shown for one in others)
    assert (
        "no difference in the truth (human) at the end was shown between TDPO-R and DDPO (+0.30" in others[3].said.text
    )
    assert others[3].said.text.endswith("the interval leaves zero out, but 3 pairs give no p below 0.25.")


def test_no_verdict_with_fewer_than_three_seeds(results: Path) -> None:
    shutil.rmtree(results / "mini" / "aesthetic" / "ddpo" / "seed2")
    (group,) = group_runs(find_runs([results]))
    texts = [
        verdict.said.text
        for verdict in said(group)
        if not verdict.said.text.startswith(("With fewer", "Where to stop"))
    ]
    assert texts == ["On aesthetic no verdict is given without 3 seeds: DDPO has 2."]


def test_no_difference_is_called_none(tmp_path: Path) -> None:
    for seed in range(6):
        write_run(tmp_path, "ddpo", seed=seed)
        copy = write_run(tmp_path, "tdpo_r", seed=seed)
        shutil.copy(tmp_path / "mini/aesthetic/ddpo" / f"seed{seed}" / "metrics.jsonl", copy / "metrics.jsonl")
    (group,) = group_runs(find_runs([tmp_path]))
    *compared, _ = said(group)
    assert len(compared) == 4 and not any(verdict.shown for verdict in compared)
    assert all(
        "no difference in the" in one.said.text and "3 of 6 pairs, p = 1.000" in one.said.text for one in compared
    )


def test_without_common_seeds_the_comparison_is_welchs_and_says_so(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, "ddpo", seed=seed)
        write_run(tmp_path, "tdpo_r", seed=10 + seed)
    (group,) = group_runs(find_runs([tmp_path]))
    (end,) = (verdict for verdict in said(group) if "at the end (" in verdict.said.text)
    assert (
        "9 of all 9 pairs of runs" in end.said.text
        and "unpaired (Welch), for fewer than two seeds are common" in end.said.text
    )
    assert end.shown  # 0.3 with a standard deviation of some 0.03


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
def test_damaged_runs_are_shown_and_not_compared(results: Path, tmp_path: Path, damage, reason: str) -> None:
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
