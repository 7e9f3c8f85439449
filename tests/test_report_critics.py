"""What a page says of critics, against a record written by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_runs import critic, write_run

from overopt_bench.report.critics import critics_table, explained_variance
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs

SHARES = ((0.0, 0.1), (0.2, 0.4), (0.0, 0.2), (0.1, 0.3))  # by epoch and step; two steps make 0.05, 0.3, 0.1, 0.2


def trained(folder: Path, resets: Sequence[int] = (), lift: float = 0.0) -> None:
    """Adds four epochs of a critic that takes no steps, and resets at the ends of some."""
    lines: list[dict[str, Any]] = [
        {"event": "train", "queries": 100 * (k + 1), "critic/steps_since_reset": 0,
         "critic/explained_variance": sum(shares) / 2 + lift,
         **{f"critic/explained_variance/step{s}": share + lift for s, share in enumerate(shares)}}
        for k, shares in enumerate(SHARES)
    ]  # fmt: skip
    lines += [critic(k, 100 * (k + 1)) | {"when": when} for k in resets for when in ("before_reset", "after_reset")]
    with (folder / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


@pytest.fixture
def group(tmp_path: Path) -> Group:
    for seed in range(2):
        trained(write_run(tmp_path, "tdpo_r", seed=seed), resets=(1, 3), lift=0.02 * seed)
        trained(write_run(tmp_path, "tdpo", seed=seed))
        write_run(tmp_path, "ddpo", seed=seed)
    (found,) = group_runs(find_runs([tmp_path]))
    return found


def test_explained_variance_is_tabled_by_half_step_and_reset(group: Group) -> None:
    """Second half: (0.1 + 0.2) / 2 and 0.02 more in the second seed; before its two resets 0.3 and 0.2, likewise."""
    table = critics_table(group).set_index("algorithm")
    assert list(table.index) == ["tdpo", "tdpo_r"]
    assert table.loc["tdpo_r", "second half"].value == pytest.approx(0.16) and table.loc["tdpo_r", "seeds"] == 2
    assert table.loc["tdpo_r", "first half"].value == pytest.approx((0.05 + 0.3) / 2 + 0.01)
    assert table.loc["tdpo_r", "second half, by step"] == "0.060 0.260"
    assert table.loc["tdpo_r", "last epoch before a reset"].value == pytest.approx(0.26)
    assert (table.loc["tdpo_r", "resets"], table.loc["tdpo", "resets"]) == ("2", "0")
    assert table.loc["tdpo", "last epoch before a reset"] is None


def test_explained_variance_is_drawn_for_what_has_a_critic(group: Group) -> None:
    figure = explained_variance(group)
    assert figure is not None
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert {"tdpo (2 seeds)", "tdpo_r (2 seeds)"} <= lines.keys() and not any("ddpo" in name for name in lines)
    assert list(lines["tdpo_r (2 seeds)"].get_xdata()) == [100, 200, 300, 400]
    assert lines["tdpo_r (2 seeds)"].get_ydata() == pytest.approx([0.06, 0.31, 0.11, 0.21])


def test_without_critics_there_is_nothing_to_say(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo")
    (group,) = group_runs(find_runs([tmp_path]))
    assert critics_table(group).empty and explained_variance(group) is None


def test_a_damaged_line_of_a_critic_damages_the_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "tdpo")
    trained(folder)
    lines = (folder / "metrics.jsonl").read_text().replace('"critic/explained_variance/step1": 0.2,', "")
    lines = lines.replace('"critic/explained_variance/step1": 0.2}', '"x": 0}')
    (folder / "metrics.jsonl").write_text(lines)
    (run,) = find_runs([tmp_path])
    assert run.state == "damaged" and "KeyError" in run.reason
