"""Text from records stays text: in tables for spreadsheets, LaTeX and Markdown, in figures, and in file names."""

from __future__ import annotations

import csv
import html
import json
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run
from hostile import HOSTILE

from overopt_bench.report import build_report, curves, layout
from overopt_bench.report.cells import write
from overopt_bench.report.escape import file_name, latex_text, markdown_text
from overopt_bench.report.filmstrip import Album, filmstrips
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.statistics import Estimate
from overopt_bench.text import csv_text


@pytest.mark.parametrize("formula", ["=1+1", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "=cmd|' /C calc'!A0"])
def test_no_cell_of_a_csv_begins_a_formula(formula: str, tmp_path: Path) -> None:
    write(
        pd.DataFrame({formula: [formula, "plain"], "n": [-1.5, 2.0], "e": [Estimate(-0.5, -1, 0, 3)] * 2}),
        tmp_path,
        "t",
    )
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        head, row, plain = csv.reader(file)
    assert head[0] == row[0] == "'" + formula.replace("\r", " ") and plain[0] == "plain"
    assert row[1:] == ["-1.5", "-0.5", "-1", "0"]  # numbers stay numbers


def test_latex_sets_every_character() -> None:
    assert latex_text(r"a_b & 50% $x$ #1 {y} ~ ^ \input") == (
        r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input"
    )
    assert latex_text("[b] *\nc") == "{[}b{]} {*} c"  # after a row's \\ these would be its options


def test_latex_and_markdown_tables_have_as_many_cells_as_columns(tmp_path: Path) -> None:
    name = "a|b & c\\\\ <b>\n`x` [l](javascript:1)"
    write(pd.DataFrame({"proxy": [name], "n": [Estimate(-0.5, None, None, 1)]}), tmp_path, "t")
    (row,) = [line for line in (tmp_path / "t.tex").read_text(encoding="utf-8").splitlines() if line.startswith("a")]
    assert row == (
        r"a\textbar{}b \& c\textbackslash{}\textbackslash{} \textless{}b\textgreater{} `x` {[}l{]}(javascript:1)"
        r" & $-$0.500 \\"
    )
    row = (tmp_path / "t.md").read_text(encoding="utf-8").splitlines()[2]
    assert row == r"| a\|b &amp; c\\\\ &lt;b&gt; \`x\` \[l\](javascript:1) | -0.500 |"


def test_names_of_algorithms_stay_as_they_are() -> None:
    assert (markdown_text("tdpo_r"), csv_text("tdpo_r"), file_name("min:aesthetic+pickscore")) == (
        "tdpo_r", "tdpo_r", "min-aesthetic+pickscore"
    )  # fmt: skip
    assert markdown_text("_x_") == r"\_x\_"


def test_file_names_stay_in_their_folder_and_apart() -> None:
    names = ["../../x", "..", "/etc/x", "a/b", "a b", "a\\b", "<b>", "", "x" * 300, "猫", "狗"]
    made = [file_name(name) for name in names]
    assert len({*made}) == len(names)
    assert not any("/" in name or "\\" in name or name.startswith(".") or not name or len(name) > 120 for name in made)


def test_a_records_names_write_and_read_nothing_outside(tmp_path: Path) -> None:
    """A proxy named like a path upwards, and a record whose picture is a file elsewhere."""
    folder = write_run(tmp_path / "results", "ddpo", proxy="../../../../up", folder=tmp_path / "results" / "r")
    secret = tmp_path / "secret.png"
    (folder / "images" / "0000000.png").rename(secret)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line.get("image_file") == "images/0000000.png":
            line["image_file"] = "../../secret.png"
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = {*tmp_path.iterdir()}
    build_report([tmp_path / "results"], tmp_path / "report")
    assert {*tmp_path.iterdir()} - before == {tmp_path / "report"}
    assert all(path.is_relative_to(tmp_path / "report") for path in tmp_path.rglob("*up*"))
    (strip,) = filmstrips(group_runs(find_runs([tmp_path / "results"]))[0], Album())
    assert [frame["queries"] for frame in strip["prompts"][0]["rows"][0]["frames"]] == [100, 200, 300, 400]


@pytest.mark.parametrize(
    "change", [{"columns": 0}, {"cell": 10**6}, {"cell": -1}, {"cell": "x"}, {"image_file": "a\0"}]
)
def test_a_row_that_points_nowhere_costs_its_frame(tmp_path: Path, change: dict[str, object]) -> None:
    metrics = write_run(tmp_path) / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    next(line for line in lines if line["event"] == "scores" and line["queries"] == 100).update(change)
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (group,) = group_runs(find_runs([tmp_path]))
    (strip,) = filmstrips(group, Album())
    assert [frame["queries"] for frame in strip["prompts"][0]["rows"][0]["frames"]] == [0, 200, 300, 400]


def test_names_in_figures_are_themselves(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Without care ``$\\undefined$`` is an error of the formula parser, and legends hide ``_x``."""
    name = r"$\undefined$ a_b " + " ".join(HOSTILE)
    write_run(tmp_path, "_ddpo", proxy=name, folder=tmp_path / "run")
    (group,) = group_runs(find_runs([tmp_path]))
    with layout.drawing():
        figure = curves.proxy_and_gold(group)
        layout.save(figure, tmp_path, "f")
    (legend,) = figure.legends
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_ddpo (1 seed)"]
    assert figure.axes[0].get_ylabel() == f"proxy: {name}"
    assert [str(warning.message) for warning in recwarn if "Deprecat" not in type(warning.message).__name__] == []


def test_half_a_surrogate_pair_and_other_scripts_reach_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", state="failed", reason="half \ud83d, 猫, 🦊", folder=tmp_path / "a")
    write_run(tmp_path, "ddpo")
    page = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    assert "half ?, 猫, 🦊" in html.unescape(page)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"gold": "human"}, "config.json: is malformed in gold"),
        ({"gold": [1]}, "config.json: is malformed in gold"),
        ({"proxy": ["x"]}, "config.json: is malformed in proxy"),
        ({"seed": "0"}, "config.json: is malformed in seed"),
    ],
)
def test_a_malformed_configuration_is_damage(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    folder = write_run(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["config"] |= change
    (folder / "config.json").write_text(json.dumps(content))
    (run,) = find_runs([tmp_path])
    assert (run.state, run.reason) == ("damaged", reason)


def test_an_unknown_state_is_damage(tmp_path: Path) -> None:
    write_run(tmp_path, state='x" onclick="alert(1)')
    (run,) = find_runs([tmp_path])
    assert run.state == "damaged" and "there is no state" in run.reason
