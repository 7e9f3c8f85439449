"""Colours and markers of a page: one of each for every label, in order of appearance, whatever the algorithms are called."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from fake_runs import write_run

from overopt_bench.report import build_report
from overopt_bench.report.groups import group_runs, with_styles
from overopt_bench.report.load import find_runs
from overopt_bench.report.styles import GREYS, PALETTE, assign

TAGS = [f"lr1e-{k}" for k in range(12)]


def test_no_two_labels_have_the_same_style() -> None:
    styles = assign((f"algorithm {k}", k % 7 > 0) for k in range(200))
    assert len({style.colour for style in styles.values()}) == len({*styles.values()}) == 200
    assert all(re.fullmatch(r"#[0-9A-F]{6}", style.colour) for style in styles.values())
    neighbours = list(styles.values())
    assert all(a.marker != b.marker for a, b in pairwise(neighbours))


def test_styles_follow_the_order_of_appearance_alone() -> None:
    """References are grey; a label that comes back keeps its style; names have no say."""
    order = [("base", False), ("ddpo", True), ("mine", True), ("ddpo", True), ("best_of_n", False), ("other", False)]
    styles = assign(order)
    assert [styles[label].colour for label in ("base", "best_of_n")] == [*GREYS]
    assert [styles[label].colour for label in ("ddpo", "mine", "other")] == [*PALETTE[:3]]
    renamed = assign([(label[::-1], trains) for label, trains in order])
    assert [*renamed.values()] == [*styles.values()]


def test_more_labels_than_colours_stay_apart_on_one_page(tmp_path: Path) -> None:
    """Two groups with 16 labels, among them the pair that once had the same colour and marker."""
    results = tmp_path / "results"
    for tag in TAGS:
        write_run(results, "ddpo", tag=tag, folder=results / tag)
    for algo in ("base", "rwr", "tdpo_r"):
        write_run(results, algo)
    write_run(results, "mine", budget=300, points=(0, 75, 150, 225, 300))
    groups = with_styles(group_runs(find_runs([results])))
    assert len(groups) == 2 and groups[0].styles == groups[1].styles
    labels = [*dict.fromkeys(label for group in groups for label in group.appearing())]
    assert len(labels) == 16 and {"rwr", "ddpo [lr1e-3]"} <= {*labels}
    assert len({groups[0].style(label) for label in labels}) == 16

    page = build_report([results], tmp_path / "report").read_text(encoding="utf-8")
    keys = dict(re.findall(r'<span class="key (c[0-9A-F]{6})"></span>([^<]+)', page))
    assert len(keys) == 16 and sorted(keys.values()) == sorted(labels)
    assert all(f".{name} {{ --row: #{name[1:]}; }}" in page for name in keys)


def test_algorithms_are_shown_by_role_and_date_of_their_paper(tmp_path: Path) -> None:
    """References first, then 2305 before 2310 before 2402, then what has no paper or is not installed here."""
    shown = ["base", "best_of_n", "ddpo", "alignprop", "tdpo", "tdpo_r", "another", "mine"]
    for algo in reversed(shown):
        write_run(tmp_path, algo)
    (group,) = group_runs(find_runs([tmp_path]))
    assert group.labels("aesthetic") == shown and group.trained("aesthetic") == shown[2:]
