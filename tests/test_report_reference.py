"""The user's own runs, and the repository's records beside them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run

from overopt_bench import cli
from overopt_bench.report import curves, reference
from overopt_bench.report.comparisons import comparisons
from overopt_bench.report.findings import findings, outcomes
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.reference import with_reference
from overopt_bench.report.sensitivity import sensitivities
from overopt_bench.report.tables import reference_table
from overopt_bench.report.verdicts import verdicts

CHECKOUT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout: records of three seeds under results/reference, a search, and no run of one's own."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        for algo in ("ddpo", "tdpo_r"):
            write_run(tmp_path / "results" / "reference", algo, seed=seed, others={"imagereward": (0, 1, 2, 3, 4)})
    write_run(tmp_path / "results" / "search", "ddpo", seed=100)
    return tmp_path


def newcomer(folder: Path, **settings: object) -> Path:
    return write_run(
        folder / "results", "tdpo_r", gold=("imagereward", "human"), others={"imagereward": (0, 1, 2, 3, 4)},
        sessions=[{"weights": {"unet": "abc"}, "rewards": {"human": "h"}}], **settings,
    )  # fmt: skip


def beside(folder: Path) -> tuple[Group, list[str]]:
    (group,), notes = with_reference(group_runs(find_runs()), find_runs([folder / "results" / "reference"]))
    return group, notes


def test_a_fresh_clone_has_nothing_where_a_users_runs_go() -> None:
    listed = subprocess.run(["git", "ls-files", "results"], cwd=CHECKOUT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("no git checkout")
    folders = {Path(name).parts[1] for name in listed.stdout.splitlines() if len(Path(name).parts) > 2}
    assert folders <= {"instrument", "reference", "search"}


def test_without_arguments_the_users_own_runs_are_drawn(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = newcomer(checkout)
    assert cli.main(["report"]) == 0
    html = Path("report/index.html").read_text(encoding="utf-8")
    listed = html.split('<section id="runs">')[1]
    assert str(own.relative_to(checkout)) in listed and "reference" not in listed and "search" not in listed
    assert capsys.readouterr().err == ""


def test_a_clone_without_own_runs_is_told_what_it_can_draw(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report"]) == 2
    error = capsys.readouterr().err
    assert "there is no run in results; make one with `overopt-bench run`" in error
    assert "`overopt-bench report results/reference`" in error and error.count("\n") == 1
    assert cli.main(["report", "results/reference"]) == 0


def test_with_reference_one_run_stands_among_all_seeds(checkout: Path) -> None:
    newcomer(checkout)
    assert cli.main(["report", "--reference"]) == 0
    html = Path("report/index.html").read_text(encoding="utf-8")
    assert "Thin lines are 6 reference records" in html
    table = pd.read_csv("report/tables/beside_reference.csv").set_index(["gold", "algorithm"])
    assert table.loc[("imagereward", "tdpo_r"), "seeds"] == 1
    assert table.loc[("imagereward", "ddpo, reference"), "seeds"] == 3


def test_a_larger_budget_is_drawn_whole_and_compared_where_both_have_numbers(checkout: Path) -> None:
    """The newcomer's run goes on to 800 queries, the records end at 400: both are read at 400."""
    newcomer(checkout, budget=800, points=(0, 200, 400, 600, 800))
    group, notes = beside(checkout)
    assert notes == [] and group.shared_queries("aesthetic") == 400
    figure = curves.proxy_and_gold(group)
    panel = next(ax for ax in figure.axes if ax.get_ylabel() == "gold: imagereward")
    ends = {line.get_label(): line.get_xdata()[-1] for line in panel.get_lines()}
    assert ends == {"ddpo, reference (3 seeds)": 400, "tdpo_r, reference (3 seeds)": 400, "tdpo_r (1 seed)": 800}
    assert not panel.collections  # one seed has no interval, and the reference's are not drawn
    note = " ".join(figure.legends[0].get_title().get_text().split())
    assert note == "means over seeds at equal evaluations, without an interval; thin lines, no band: reference records"
    rows = reference_table(group).set_index(["gold", "algorithm"])
    assert rows.loc[("imagereward", "tdpo_r"), "gold there"].value == pytest.approx(2, abs=0.1)
    assert rows.loc[("imagereward", "tdpo_r, reference"), "gold there"].value == pytest.approx(4, abs=0.1)
    assert [finding.reference for finding in findings(group, outcomes(group))] == [False, False, True, True, True, True]


def test_three_own_seeds_have_a_verdict_against_each_reference(checkout: Path) -> None:
    for seed in range(3):
        newcomer(checkout, seed=seed, budget=800, points=(0, 200, 400, 600, 800))
    group = beside(checkout)[0]
    texts = [
        verdict.said.text for verdict in verdicts(group, comparisons(group), outcomes(group), sensitivities(group))
    ]
    (text,) = (text for text in texts if "gold (imagereward)" in text and "DDPO" in text)
    assert "after 400 queries was shown between DDPO (reference) and TDPO-R (+2.0" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_steps": 7}, "they differ in num_steps (7 here, 10 there)"),
        ({"eval_images": 32, "eta": 0.5}, "they differ in eta (0.5 here, 1.0 there); eval_images (32 here, 16 there)"),
        ({"suite": "sd14"}, "no reference record is of the suite sd14; there are records of mini"),
        ({"proxy": "pickscore"}, "no reference record was trained on pickscore; there are records on aesthetic"),
    ],
)
def test_records_of_other_settings_are_not_drawn(checkout: Path, settings: dict[str, object], words: str) -> None:
    newcomer(checkout, **settings)
    group, (note,) = beside(checkout)
    assert group.reference is None and words in note


def test_where_no_record_fits_one_line_says_why(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newcomer(checkout, num_steps=7)
    words = "they differ in num_steps (7 here, 10 there)"
    assert cli.main(["report", "--reference"]) == 0
    error = capsys.readouterr().err
    assert words in error and error.startswith("note: ") and error.count("\n") == 1
    assert words in Path("report/index.html").read_text(encoding="utf-8")


def test_records_that_are_given_themselves_are_not_drawn_twice(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", "results/reference", "--reference"]) == 0
    assert "no reference record that is not among the runs already" in capsys.readouterr().err


def test_other_weights_under_the_same_name_are_other_settings(checkout: Path) -> None:
    folder = newcomer(checkout)
    (folder / "sessions.jsonl").write_text('{"weights": {"unet": "other"}, "rewards": {"human": "retrained"}}\n')
    group, (note,) = beside(checkout)
    assert group.reference is None and "the base model's weights; the weights of human" in note


def test_other_parameters_than_the_references_are_named(checkout: Path) -> None:
    newcomer(checkout, params={"lr": 0.5})
    group, _ = beside(checkout)
    assert reference.other_parameters(group) == [
        "tdpo_r has other parameters than its reference: lr (0.5 here, None there)."
    ]


def test_old_records_have_todays_defaults(checkout: Path) -> None:
    newcomer(checkout, precision="float32", train_prompts=[], model=None)
    assert beside(checkout)[1] == []


def test_away_from_a_checkout_reference_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reference, "__file__", str(tmp_path / "site-packages/overopt_bench/report/reference.py"))
    newcomer(tmp_path)
    assert cli.main(["report", "--reference"]) == 2
    error = capsys.readouterr().err
    assert "comes with a checkout" in error and error.count("\n") == 1 and not Path("report").exists()
