"""Every asked gold is drawn, tabled, judged and captioned, and the suite's truth stands beside it as that."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import write_run
from matplotlib.collections import LineCollection

from overopt_bench.report import build_report, curves
from overopt_bench.report.comparisons import comparisons
from overopt_bench.report.filmstrip import Album, filmstrips, stills
from overopt_bench.report.findings import findings, outcomes
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.sensitivity import sensitivities
from overopt_bench.report.tables import overoptimization_table, scaling_table, summary_table
from overopt_bench.report.verdicts import verdicts

FALLS, RISES = (0.0, 1.0, 2.0, 1.5, 1.0), (0.0, 0.1, 0.2, 0.3, 0.4)


def one_group(folder: Path) -> Group:
    (group,) = group_runs(find_runs([folder]))
    return group


@pytest.fixture
def asked(tmp_path: Path) -> Group:
    """Two algorithms, three seeds; imagereward asked for, which ddpo raises and loses, tdpo_r loses less of."""
    for seed in range(3):
        write_run(tmp_path, "ddpo", seed=seed, gold=("imagereward", "human"), others={"imagereward": FALLS})
        write_run(tmp_path, "tdpo_r", seed=seed, gold=("imagereward", "human"), others={"imagereward": RISES})
    return one_group(tmp_path)


def test_an_asked_gold_has_its_curve_and_the_truth_its_own_beside_it(asked: Group) -> None:
    figure = curves.proxy_and_gold(asked)
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    assert list(panels) == ["proxy: aesthetic", "gold: imagereward", "truth: human"]
    drawn = {line.get_label().split(" ")[0]: line.get_ydata() for line in panels["gold: imagereward"].get_lines()}
    assert drawn["ddpo"] == pytest.approx(FALLS, abs=0.1) and drawn["tdpo_r"] == pytest.approx(RISES, abs=0.1)
    truth = {line.get_label().split(" ")[0]: line.get_ydata() for line in panels["truth: human"].get_lines()}
    assert truth["ddpo"] == pytest.approx((0.5, 0.6, 0.7, 0.6, 0.5), abs=0.1)


def test_an_asked_gold_has_its_rows(asked: Group) -> None:
    for table in (summary_table(asked), overoptimization_table(asked), scaling_table(asked)):
        assert set(table["gold"]) == {"imagereward", "human (truth)"}
    rows = summary_table(asked).set_index(["algorithm", "gold"])
    assert rows.loc[("ddpo", "imagereward"), "drop"].value == pytest.approx(1.0, abs=0.05)
    assert rows.loc[("ddpo", "human (truth)"), "drop"].value == pytest.approx(0.2, abs=0.05)


def test_an_asked_gold_has_its_verdict(asked: Group) -> None:
    texts = [
        one.said.text
        for one in verdicts(asked, comparisons(asked), outcomes(asked), sensitivities(asked))
        if " at the end was" in one.said.text
    ]
    (gold,), (truth,) = ([text for text in texts if word in text] for word in ("gold (imagereward)", "truth (human)"))
    assert "between DDPO and TDPO-R (+0.60" in gold and "between TDPO-R and DDPO (+0.30" in truth


def test_what_happened_to_an_asked_gold_is_said(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", gold=("imagereward", "human"), others={"imagereward": FALLS})
    group = one_group(tmp_path)
    (gold, truth) = (finding.said.text for finding in findings(group, outcomes(group)))
    peak = group.runs[0].peak("train", "imagereward")
    assert peak is not None and peak.drop.mean == pytest.approx(1, abs=0.02)
    ends = group.runs[0].curve("train/imagereward/mean")[1][[0, -1]]
    assert gold.startswith(
        f"DDPO on aesthetic (1 seed): the gold imagereward ended {peak.drop.mean:.3f} below its peak (1 seed; standard error"
        f" over prompts {peak.drop.error:.3f}). It went from {ends[0]:.3f} to {ends[1]:.3f}, highest at {peak.value:.3f} after 200"
        " queries, the proxy from"
    )
    assert gold.endswith("the gold rose and fell from there: overoptimized.")
    assert "the truth human" in truth


def test_pictures_are_captioned_with_every_gold(asked: Group) -> None:
    (strip,) = filmstrips(asked, Album())
    assert strip["rewards"] == ["proxy aesthetic", "gold imagereward", "truth human"]
    frame = strip["prompts"][0]["rows"][0]["frames"][2]
    point = asked.of("aesthetic", "ddpo")[0].points["train"][2]
    assert frame["scores"] == [round(point.of(name)[0], 3) for name in ("aesthetic", "imagereward", "human")]
    shown = stills(asked, "aesthetic", Album())["ddpo"]
    assert [still.when for still in shown[:4]] == ["start", "peak of imagereward", "peak of human", "end"]
    assert shown[1].queries == 200 and [*shown[1].golds] == ["imagereward", "human"]


def test_two_asked_golds_come_in_the_order_of_asking(tmp_path: Path) -> None:
    others = {"pickscore": RISES, "imagereward": FALLS}
    write_run(tmp_path, "ddpo", gold=("pickscore", "imagereward", "human"), others=others)
    group = one_group(tmp_path)
    assert group.golds() == ["pickscore", "imagereward", "human"]
    html = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    for name in ("the gold pickscore", "the gold imagereward", "the truth human"):
        assert name in html


def test_a_gold_that_is_a_runs_proxy_is_no_gold_for_it(tmp_path: Path) -> None:
    gold = ("imagereward", "human")
    write_run(tmp_path, "ddpo", proxy="imagereward", gold=gold)
    write_run(tmp_path, "ddpo", proxy="aesthetic", gold=gold, others={"imagereward": FALLS})
    group = one_group(tmp_path)
    assert group.golds("imagereward") == ["human"] and group.golds("aesthetic") == ["imagereward", "human"]
    rows = summary_table(group)
    assert list(rows[rows.proxy == "imagereward"].gold) == ["human (truth)"]
    words = [text.get_text() for ax in curves.proxy_and_gold(group).axes for text in ax.texts]
    assert words == ["imagereward is the proxy here"]
    assert "imagereward is the proxy of some runs" in build_report([tmp_path], tmp_path / "r").read_text(
        encoding="utf-8"
    )


def test_a_run_whose_only_gold_is_its_proxy_says_that_nothing_was_held_out(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", proxy="human")
    group = one_group(tmp_path)
    assert group.golds("human") == [] and outcomes(group) == [] and len(summary_table(group)) == 0
    html = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "no other reward was held out as gold" in html


def test_a_gold_that_only_some_runs_have_is_drawn_for_those_and_the_others_are_named(tmp_path: Path) -> None:
    gold = ("imagereward", "human")
    for seed in (0, 1):
        write_run(tmp_path, "ddpo", seed=seed, gold=gold, others={"imagereward": FALLS})
    without = [write_run(tmp_path, "ddpo", seed=2), write_run(tmp_path, "tdpo_r")]
    group = one_group(tmp_path)
    assert {run.folder for run in group.lacking("imagereward")} == {*without}
    seeds = summary_table(group).set_index(["algorithm", "gold"])["seeds"]
    assert dict(seeds) == {("ddpo", "imagereward"): 2, ("ddpo", "human (truth)"): 3, ("tdpo_r", "human (truth)"): 1}
    figure = curves.proxy_and_gold(group)
    panel = next(ax for ax in figure.axes if ax.get_ylabel() == "gold: imagereward")
    assert [len(seeds.get_segments()) for seeds in panel.collections if isinstance(seeds, LineCollection)] == [2]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["ddpo (2 to 3 seeds)", "tdpo_r (1 seed)"]
    html = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    note = html.split("imagereward was not asked for, nor recorded, in ")[1].split("</p>")[0]
    assert all(str(folder) in note for folder in without)


def test_a_recorded_reward_is_drawn_for_runs_that_did_not_ask_for_it(tmp_path: Path) -> None:
    """As of mini, where every run evaluates every reward: one run's asking is enough."""
    write_run(tmp_path, "ddpo", gold=("imagereward", "human"), others={"imagereward": FALLS})
    write_run(tmp_path, "tdpo_r", others={"imagereward": RISES})
    group = one_group(tmp_path)
    assert group.lacking("imagereward") == []
    assert set(summary_table(group).set_index("gold").loc["imagereward", "algorithm"]) == {"ddpo", "tdpo_r"}


def test_the_same_training_with_another_gold_is_no_second_seed(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", folder=tmp_path / "a")
    write_run(tmp_path, "ddpo", folder=tmp_path / "b", gold=("imagereward", "human"), others={"imagereward": FALLS})
    group = one_group(tmp_path)
    assert [run.folder.name for run in group.runs] == ["b"]  # it recorded more


def test_a_suite_that_does_not_know_its_truth_has_golds_only(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", suite="sd14", gold=("imagereward",), others={"imagereward": FALLS})
    group = one_group(tmp_path)
    assert group.truth is None and group.golds() == ["imagereward"] and group.role("imagereward") == "gold"
