"""What a page says that could have been shown, against differences whose scatter is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_runs import GOLD, IMAGES, write_run

from overopt_bench.report.comparisons import END, comparisons
from overopt_bench.report.findings import outcomes
from overopt_bench.report.groups import Group, group_runs
from overopt_bench.report.load import find_runs
from overopt_bench.report.sensitivity import sensitivities, sensitivity_sentence, sensitivity_table
from overopt_bench.report.statistics import smallest_effect
from overopt_bench.report.verdicts import verdicts

EXTRA = (0.3, -0.1, 0.2, 0.0, 0.4, -0.2)  # what each seed of a label has at the end that the others' have not


def group_of(folder: Path, seeds: int, labels: tuple[str, ...] = ("ddpo", "grpo")) -> Group:
    for seed, extra in enumerate(EXTRA[:seeds]):
        for k, label in enumerate(labels):
            curve = (*GOLD["ddpo"][:-1], GOLD["ddpo"][-1] + k * extra)
            write_run(folder, label, seed=seed, noise=0, gold=("imagereward",), others={"imagereward": curve})
    (group,) = group_runs(find_runs([folder]))
    return group


def test_the_smallest_effect_follows_from_how_the_pairs_scatter(tmp_path: Path) -> None:
    group = group_of(tmp_path, 6)
    (end,) = (one for one in sensitivities(group) if (one.gold, one.question) == ("imagereward", END))
    assert end.deviation == pytest.approx(np.std(EXTRA, ddof=1)) and end.pairs == (6, 6) and end.algorithms == 1
    (row,) = sensitivity_table(group, [end]).to_dict("records")
    assert row["deviation of a difference"] == "0.237" and row["pairs of seeds"] == "6"
    assert float(row["10 seeds"]) == pytest.approx(smallest_effect(10) * 0.2366, rel=5e-3)
    assert float(row["smallest effect, seeds at hand"]) == pytest.approx(smallest_effect(6) * 0.2366, rel=5e-3)
    quirks = [np.random.default_rng(seed).normal(0, 0.1, IMAGES).std() for seed in range(6)]  # of the base images
    told = float(row["10 seeds, in deviations of base images"])
    assert told == pytest.approx(smallest_effect(10) * np.std(EXTRA, ddof=1) / np.mean(quirks), rel=5e-3)


def test_several_pairs_of_algorithms_are_taken_in_the_quadratic_mean(tmp_path: Path) -> None:
    """Of 0, 1 and 2 times the extras, differences scatter by 1, 2 and 1 times as much: the root of (1 + 4 + 1) / 3."""
    group = group_of(tmp_path, 4, ("ddpo", "grpo", "tdpo"))
    (end,) = (one for one in sensitivities(group) if (one.gold, one.question) == ("imagereward", END))
    assert end.deviation == pytest.approx(np.std(EXTRA[:4], ddof=1) * 2**0.5) and end.algorithms == 3
    (row,) = sensitivity_table(group, [end]).to_dict("records")
    assert row["smallest effect, seeds at hand"] == "none" and row["seeds for the clearest of all pairs"] == 7


def test_a_page_says_what_it_could_have_shown(tmp_path: Path) -> None:
    group = group_of(tmp_path, 4)
    said = verdicts(group, comparisons(group), outcomes(group), sensitivities(group))
    (text,) = (one.said.text for one in said if "one comparison of imagereward" in one.said.text)
    ten = smallest_effect(10) * np.std(EXTRA[:4], ddof=1)
    assert (
        f"four times in five, {ten:.3g} or more with 10 paired seeds" in text and "nothing with the 4 at hand" in text
    )


def test_the_fewest_seeds_are_not_said_to_be_everybodys(tmp_path: Path) -> None:
    (end,) = (one for one in sensitivities(group_of(tmp_path, 4)) if (one.gold, one.question) == ("imagereward", END))
    text = sensitivity_sentence([replace(end, pairs=(4, 10))], "aesthetic", "imagereward")
    assert "nothing with the 4 that some of the algorithms share" in text and "at hand" not in text


def test_where_seeds_differ_the_table_has_what_the_fewest_and_the_most_could_show(tmp_path: Path) -> None:
    group = group_of(tmp_path, 4)
    (end,) = (one for one in sensitivities(group) if (one.gold, one.question) == ("imagereward", END))
    (row,) = sensitivity_table(group, [replace(end, pairs=(4, 10))]).to_dict("records")
    most = smallest_effect(10) * np.std(EXTRA[:4], ddof=1)
    assert row["pairs of seeds"] == "4 to 10" and row["smallest effect, seeds at hand"] == f"none to {most:.3g}"
    (row,) = sensitivity_table(group, [replace(end, pairs=(6, 10))]).to_dict("records")
    assert (
        row["smallest effect, seeds at hand"] == f"{smallest_effect(6) / smallest_effect(10) * most:.3g} to {most:.3g}"
    )


def test_without_three_common_seeds_nothing_is_said(tmp_path: Path) -> None:
    assert sensitivities(group_of(tmp_path, 2)) == []


def test_equal_runs_tell_nothing_of_what_could_be_shown(tmp_path: Path) -> None:
    """Where no pair differs the scatter is not known to be zero."""
    group = group_of(tmp_path, 6)
    (end,) = (one for one in sensitivities(group) if (one.gold, one.question) == ("imagereward", END))
    assert sensitivity_sentence([end], "aesthetic", "imagereward") != ""
    assert sensitivity_sentence([replace(end, deviations=np.zeros(1))], "aesthetic", "imagereward") == ""


def test_a_single_run_is_told_how_the_reference_records_scatter(tmp_path: Path) -> None:
    records = group_of(tmp_path / "records", 4)
    write_run(tmp_path / "own", "tdpo", seed=7, gold=("imagereward",), others={"imagereward": GOLD["ddpo"]})
    (alone,) = group_runs(find_runs([tmp_path / "own"]))
    assert sensitivities(alone) == []
    found = sensitivities(replace(alone, reference=records))
    assert found and all(one.reference for one in found)
    text = sensitivity_sentence(found, "aesthetic", "imagereward")
    assert text.endswith("deviations of the base model's images), as the reference records scatter.")
