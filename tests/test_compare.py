"""``overopt-bench compare``: two labels seed by seed, against what their records say and scipy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run
from scipy import stats as scipy_stats

from overopt_bench import api, cli
from overopt_bench.errors import UserError
from overopt_bench.report.statistics import holm

SEEDS = range(6)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six seeds of two labels in ``results``, whose noise differs, and the base model once."""
    monkeypatch.chdir(tmp_path)
    for seed in SEEDS:
        write_run(tmp_path / "results", "ddpo", seed=seed, noise=0.02)
        write_run(tmp_path / "results", "tdpo_r", seed=seed, noise=0.2)
    write_run(tmp_path / "results", "base")
    return tmp_path / "results"


def ends(results: Path, algo: str, key: str = "train/human/mean") -> list[float]:
    files = [results / f"mini/aesthetic/{algo}/seed{seed}/metrics.jsonl" for seed in SEEDS]
    return [json.loads(file.read_text().splitlines()[-1 if algo == "ddpo" else -2])[key] for file in files]


def row(table: pd.DataFrame, reward: str, what: str) -> pd.Series:
    (found,) = (one for _, one in table[(table.reward == reward) & (table.what == what)].iterrows())
    return found


def test_two_labels_are_paired_by_seed(results: Path) -> None:
    table = api.compare("ddpo", "tdpo_r")
    assert list(zip(table.reward, table.what, strict=True)) == [
        ("aesthetic (proxy)", "at the end"), ("human (truth)", "at the end"), ("human (truth)", "fall from the peak")
    ]  # fmt: skip
    a, b = ends(results, "ddpo"), ends(results, "tdpo_r")
    test = scipy_stats.ttest_rel(a, b)
    interval = test.confidence_interval()
    gold = row(table, "human (truth)", "at the end")
    assert gold["difference"] == pytest.approx(sum(a) / 6 - sum(b) / 6) == gold["A"] - gold["B"]
    assert (gold["low"], gold["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (gold["pairs"], gold["wins"], gold["of"], gold["p"], gold["paired"]) == (6, 0, 6, 2 / 2**6, True)
    assert row(table, "human (truth)", "fall from the peak")["difference"] == pytest.approx(0.2, abs=0.05)


def test_holm_is_over_the_table(results: Path) -> None:
    table = api.compare("ddpo", "tdpo_r")
    assert list(table["p (Holm)"]) == holm([*table["p"]])
    assert row(table, "human (truth)", "at the end")["p (Holm)"] == 3 * 2 / 2**6  # of three rows


def test_only_common_seeds_are_compared(results: Path) -> None:
    shutil.rmtree(results / "mini/aesthetic/tdpo_r/seed1")
    gold = row(api.compare("tdpo_r", "ddpo"), "human (truth)", "at the end")
    a, b = ([v for k, v in enumerate(ends_of) if k != 1] for ends_of in ([0.0] * 6, ends(results, "ddpo")))
    assert gold["pairs"] == 5 and gold["B"] == pytest.approx(sum(b) / len(a))


def test_folders_are_compared_as_labels_are(results: Path, tmp_path: Path) -> None:
    shutil.move(results / "mini/aesthetic/ddpo", tmp_path / "elsewhere")
    by_folder = api.compare(str(tmp_path / "elsewhere"), "tdpo_r")
    assert row(by_folder, "human (truth)", "at the end")["pairs"] == 6
    same = api.compare(str(tmp_path / "elsewhere"), "results/mini/aesthetic/tdpo_r")
    pd.testing.assert_frame_equal(by_folder, same)


def test_the_base_model_stands_beside_every_seed(results: Path) -> None:
    gold = row(api.compare("tdpo_r", "base"), "human (truth)", "at the end")
    assert gold["pairs"] == 6 and gold["paired"] and gold["wins"] == 6


def test_without_common_seeds_it_is_welch(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (20, 21, 22):
        write_run(tmp_path / "other", "nft", seed=seed)
    gold = row(api.compare("ddpo", "other"), "human (truth)", "at the end")
    assert not gold["paired"] and gold["of"] == 18 and gold["low"] < gold["difference"] < gold["high"]
    assert "Welch's interval and p of all runs" in capsys.readouterr().out


def test_the_table_for_people_and_for_programs(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "ddpo", "tdpo_r"]) == 0
    said = capsys.readouterr().out
    assert "A = ddpo, B = tdpo_r: A - B" in said and "0 of 6 pairs" in said and "0.0312" in said
    assert cli.main(["compare", "ddpo", "tdpo_r", "--csv"]) == 0
    head, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.startswith("proxy,reward,prompts,what,A,B,difference,low,high,pairs") and len(lines) == 3


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("ddpo", "tpdo_r"), "did you mean 'tdpo_r'"),
        (("ddpo", "ddpo"), "given twice"),
        (("ddpo", "results"), "holds runs of several labels, base, ddpo, tdpo_r"),
        (("ddpo", "results/mini/aesthetic/ddpo"), "share runs"),
    ],
)
def test_what_cannot_be_compared_is_refused(results: Path, given: tuple[str, str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        api.compare(*given)
    assert words in str(refused.value)


def test_other_settings_proxies_and_seeds_of_two_kinds_are_refused(results: Path, tmp_path: Path) -> None:
    write_run(tmp_path / "steps", "nft", num_steps=7)
    write_run(tmp_path / "proxy", "nft", proxy="pickscore")
    for k, lr in enumerate((0.1, 0.2)):
        write_run(tmp_path / "mixed", "nft", seed=k, params={"lr": lr})
    for folder, words in {
        "steps": "the first of each differ in num_steps (10 here, 7 there)",
        "proxy": "no proxy in common: ddpo was trained on aesthetic, proxy on pickscore",
        "mixed": "mixed is ambiguous: ",
    }.items():
        with pytest.raises(UserError) as refused:
            api.compare("ddpo", folder)
        assert words in str(refused.value)
    assert "lr (0.1 here, 0.2 there)" in str(refused.value)
