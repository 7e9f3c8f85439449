"""Which runs are compared: those of one model and of rewards with one set of weights."""

from __future__ import annotations

from pathlib import Path

from fake_runs import write_run

from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs

WEIGHTS = {"unet": "abc"}


def recorded(folder: Path, algo: str, seed: int, rewards: dict[str, str | None] | None, weights: object = None) -> Path:
    session = {"weights": weights or WEIGHTS} | ({} if rewards is None else {"rewards": rewards})
    return write_run(
        folder, algo, seed=seed, folder=folder / f"{algo}{seed}{len(list(folder.glob('*')))}", sessions=[session]
    )


def parts(folder: Path) -> list[tuple[set[tuple[str, int]], str]]:
    groups = group_runs(find_runs([folder]))
    return [({(run.algo, run.config["seed"]) for run in group.runs}, group.note) for group in groups]


def test_another_hash_of_one_reward_makes_another_group(tmp_path: Path) -> None:
    same = {"human": "h", "aesthetic": "a", "jpeg": None}
    for seed in (0, 1):
        recorded(tmp_path, "ddpo", seed, same)
    recorded(tmp_path, "tdpo_r", 0, {**same, "human": "retrained"})
    recorded(tmp_path, "tdpo_r", 1, {**same, "jpeg": "other"})
    first, *others = parts(tmp_path)
    assert first == ({("ddpo", 0), ("ddpo", 1)}, "")
    assert [one[0] for one in others] == [{("tdpo_r", 0)}, {("tdpo_r", 1)}]
    assert [one[1].split(" of ")[-1] for one in others] == ["human.", "jpeg."]


def test_a_reward_that_some_did_not_ask_and_older_records_part_nothing(tmp_path: Path) -> None:
    recorded(tmp_path, "ddpo", 0, {"human": "h"})
    recorded(tmp_path, "ddpo", 1, {"human": "h", "pickscore": "p"})
    recorded(tmp_path, "ddpo", 2, None)
    assert parts(tmp_path) == [({("ddpo", 0), ("ddpo", 1), ("ddpo", 2)}, "")]


def test_other_weights_of_the_model_make_another_group(tmp_path: Path) -> None:
    recorded(tmp_path, "ddpo", 0, {"human": "h"})
    recorded(tmp_path, "ddpo", 0, {"human": "h"}, {"unet": "other"})
    assert len(parts(tmp_path)) == 2


def test_the_same_seed_with_a_retrained_reward_is_no_duplicate(tmp_path: Path) -> None:
    recorded(tmp_path, "ddpo", 0, {"human": "h", "aesthetic": "a"})
    recorded(tmp_path, "ddpo", 0, {"human": "h", "aesthetic": "retrained"})
    recorded(tmp_path, "ddpo", 0, {"human": "h"})
    runs = find_runs([tmp_path])
    assert sorted(run.state for run in runs) == ["complete", "complete", "duplicate"]
