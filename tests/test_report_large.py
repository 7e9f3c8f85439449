"""A report on very many runs: nothing is read, decoded or said more often than it must be, and the page stays small."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run

from overopt_bench import report
from overopt_bench.report import build_report, filmstrip, page
from overopt_bench.report.comparisons import GAIN, Comparison, comparisons
from overopt_bench.report.filmstrip import Album, filmstrips, stills
from overopt_bench.report.findings import findings, outcomes
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.sensitivity import sensitivities
from overopt_bench.report.statistics import Difference
from overopt_bench.report.verdicts import _leader, verdicts

TAGS = [f"t{k}" for k in range(6)]


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Six algorithms, two proxies, three seeds; the first tag's gold is the highest, and it alone does not fall."""
    for proxy in ("aesthetic", "pickscore"):
        for k, tag in enumerate(TAGS):
            for seed in range(3):
                algo = "ddpo" if k else "tdpo_r"
                write_run(
                    tmp_path / "runs", algo, proxy, seed, tag=tag, folder=tmp_path / "runs" / f"{proxy}{tag}{seed}"
                )
    return tmp_path / "runs"


def one_group(folder: Path) -> Group:
    (group,) = group_runs(find_runs([folder]))
    return group


def test_each_file_is_read_once_and_each_grid_decoded_once(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    whole = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.update([str(path)]), whole(path))[1])
    group = one_group(many)
    metrics = [path for path in read if path.endswith("metrics.jsonl")]
    assert len(metrics) == 36 and {read[path] for path in metrics} == {1}

    opened: Counter[str] = Counter()
    image_open = filmstrip.Image.open
    monkeypatch.setattr(filmstrip.Image, "open", lambda path: (opened.update([str(path)]), image_open(path))[1])
    album = Album()
    for proxy in group.proxies():
        assert len(stills(group, proxy, album)) == len(TAGS)
    strips = filmstrips(group, album)
    frames = [
        frame for strip in strips for prompt in strip["prompts"] for row in prompt["rows"] for frame in row["frames"]
    ]
    assert len(frames) == 2 * 6 * 5 * 4  # proxies, algorithms, points, prompts: four cells of each grid
    assert len(opened) == album.decoded == 2 * 6 * 5 and {*opened.values()} == {1}


def test_groups_are_looked_up_and_not_scanned(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often a group is asked, each run's place in it is found once."""
    runs = find_runs([many])
    asked: Counter[str] = Counter()
    label = type(runs[0]).label
    for run in runs:
        run.__dict__.pop("label", None)
    monkeypatch.setattr(
        type(runs[0]), "label", property(lambda run: (asked.update([str(run.folder)]), label.func(run))[1])
    )
    (group,) = group_runs(runs)
    found = [group.of(proxy, name) for _ in range(50) for proxy in group.proxies() for name in group.labels(proxy)]
    assert sum(map(len, found)) == 50 * 36 and max(asked.values()) < 10


def test_few_sentences_say_what_matters_and_tables_have_the_rest(many: Path) -> None:
    group = one_group(many)
    compared, happened = comparisons(group), outcomes(group)
    assert len(compared) == 2 * 4 * 15 and len(happened) == 2 * 6  # four questions, fifteen pairs
    few, *said = verdicts(group, compared, happened, sensitivities(group))
    assert "With fewer than six pairs" in few.said.text
    assert [verdict.proxy for verdict in said] == ["aesthetic"] * 3 + ["pickscore"] * 3
    best = "tdpo_r [t0]"
    assert f"{best} is highest at the end (by the interval alone against ddpo [t1], ddpo [t2]," in said[0].said.text
    assert (
        "); nearest is ddpo [t1], by 0.300 (95 % interval 0.300 to 0.300, 3 of 3 pairs, p = 1.000" in said[0].said.text
    )
    assert not said[0].shown and "on training prompts 0 of 60 comparisons are shown, 20 have an" in said[0].said.text
    assert said[1].said.text.endswith("with 15 pairs of algorithms beside each other the clearest needs 10 seeds.")
    assert said[2].said.text.startswith("Where to stop on aesthetic by the truth human: ddpo [t1] after 200 queries")
    first, second = (finding.said.text for finding in findings(group, happened))
    assert first.startswith("Trained on aesthetic, the truth human was overoptimized by 5 of 6 algorithms: ")
    assert re.search(r"ddpo \[t1\] by 0\.20\d \(95 % interval 0\.19\d to 0\.20\d, 3 of 3 seeds, p = 1\.000", first)
    assert first.endswith(f"; not shown for {best}.")
    assert first.count("; overoptimized in 3 of 3 seeds by the errors of each") == 5 and "pickscore" in second


def test_who_is_first_is_said_to_be_below_whom_it_is_below() -> None:
    """At equal gains and KLs, which are each pair's own, the first of most pairs may be behind in another."""

    def pair(more: str, less: str, value: float, half: float, p: float) -> Comparison:
        found = Difference(value, value - half, value + half, 10, p, 9, 10, paired=True)
        return Comparison("aesthetic", "human", "train", GAIN, "there", more, less, found, p, level=0.0)

    won = [pair("A", "B", 0.3, 0.1, 0.01), pair("A", "C", 0.2, 0.1, 0.30), pair("A", "D", 0.1, 0.2, 0.60)]
    lost = [pair("E", "A", 0.04, 0.01, 0.02), pair("F", "A", 0.02, 0.01, 0.20), pair("G", "A", 0.01, 0.02, 0.70)]
    assert _leader([*won, *lost]) == (
        "A is higher than most at equal proxy gain (shown against B, by the interval alone against C, no difference was shown from D, G,"
        " shown to be below E, by the interval alone below F); E is above it by 0.040 (95 % interval 0.030 to 0.050,"
        " 9 of 10 pairs, p = 0.020 (Holm))"
    )
    assert _leader(won).startswith("A is highest at equal proxy gain (")
    assert "); nearest is D, by 0.100 (95 % interval -0.100 to 0.300" in _leader(won)


def test_a_page_without_room_has_its_figures_beside_it(
    many: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(page, "ROOM", 0)
    monkeypatch.setattr(report, "_figures", lambda group, album, make=report._figures: list(make(group, album))[-4:])
    index = build_report([many], tmp_path / "out")
    html = index.read_text(encoding="utf-8")
    sources = re.findall(r'<figure><img src="([^"]*)"', html)
    assert len(sources) == 4 and all((index.parent / source).is_file() for source in sources)
    assert html.count('<details class="panel">') == 2
    strips = json.loads(re.search(r'class="strips">(.*?)</script>', html, re.DOTALL)[1])
    assert strips[0]["prompts"][0]["rows"][0]["frames"][0]["src"].startswith("data:image/png;base64,")
    table = pd.read_csv(tmp_path / "out" / "tables" / "comparisons.csv")
    assert len(table) == 120 and {*table["more"]} >= {"tdpo_r [t0]"} and {*table["shown"]} <= {"yes", "no"}
    assert len(pd.read_csv(tmp_path / "out" / "tables" / "outcomes.csv")) == 12


def test_many_runs_have_fewer_frames_each(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filmstrip, "FRAMES", 36)  # twelve runs
    strips = filmstrips(one_group(many), Album())
    rows = [row for strip in strips for prompt in strip["prompts"] for row in prompt["rows"]]
    assert {tuple(frame["queries"] for frame in row["frames"]) for row in rows} == {(0, 200, 400)}


def test_unequal_scores_are_damage(tmp_path: Path) -> None:
    metrics = write_run(tmp_path) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    next(line for line in lines if line["event"] == "scores")["scores"]["human"].pop()
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run,) = find_runs([tmp_path])
    assert run.state == "damaged" and run.reason.startswith("metrics.jsonl: ValueError")
