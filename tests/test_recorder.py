"""The run folder: atomic, resumable, locked, and never mixed up."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from overopt_bench.config import RunConfig, resolve
from overopt_bench.errors import UserError
from overopt_bench.recording.recorder import Recorder
from overopt_bench.recording.sessions import read_sessions


def config(**changes: Any) -> RunConfig:
    return resolve({"algo": "ddpo", "proxy": "aesthetic", "suite": "mini", **changes})


def opened(out: Path, **changes: Any) -> Recorder:
    made = config(**changes)
    return Recorder(made.folder(out), made, {})


def lines(recorder: Recorder) -> list[int]:
    return [json.loads(line)["queries"] for line in (recorder.folder / "metrics.jsonl").read_text().splitlines()]


def filled(out: Path) -> Recorder:
    """Checkpoints at 1 and 2, and a line past each."""
    recorder = opened(out)
    for k in (1, 2):
        recorder.write("train", {"queries": k})
        recorder.save(recorder.snapshot(k, {"weight": torch.tensor(float(k))}))
    recorder.write("train", {"queries": 3})
    recorder.close()
    return recorder


def test_resume_drops_lines_past_the_newest_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path)
    recorder = opened(tmp_path)
    state, complaints = recorder.resume()
    assert state is not None and state["weight"] == 2 and complaints == []
    recorder.write("train", {"queries": 9})
    assert lines(recorder) == [1, 2, 9]


@pytest.mark.parametrize("damage", [b"", b"half a file", None])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, damage: bytes | None) -> None:
    newest = sorted((filled(tmp_path).folder / "checkpoint").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:200] if damage is None else damage)
    recorder = opened(tmp_path)
    state, complaints = recorder.resume()
    assert state is not None and state["weight"] == 1
    assert len(complaints) == 1 and newest.name in complaints[0]
    assert lines(recorder) == [1]


def test_without_any_good_checkpoint_a_run_starts_anew_and_says_so(tmp_path: Path) -> None:
    for path in (filled(tmp_path).folder / "checkpoint").glob("*.pt"):
        path.write_bytes(b"")
    recorder = opened(tmp_path)
    state, complaints = recorder.resume()
    assert state is None and "starting from the beginning" in complaints[-1] and lines(recorder) == []


def test_only_two_checkpoints_are_kept(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    for k in range(5):
        recorder.save(recorder.snapshot(k, {}))
    assert [p.name for p in sorted((recorder.folder / "checkpoint").iterdir())] == ["000000003.pt", "000000004.pt"]


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = filled(tmp_path).folder
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}
    with pytest.raises(UserError, match=r"params.lr: [0-9.e-]+ there, 0.5 asked") as refused:
        opened(tmp_path, params={"lr": 0.5})
    assert "--tag" in str(refused.value)
    assert before == {p: p.read_bytes() for p in before}


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    folder = config().folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not a run folder"):
        opened(tmp_path)
    assert [p.name for p in folder.iterdir()] == ["thesis.txt"]


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(UserError, match="another process"):
        opened(tmp_path)
    first.close()
    opened(tmp_path).close()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    recorder = opened(tmp_path)
    recorder.resume()

    def full(path: Path, content: bytes) -> None:
        path.open("wb").write(b"part of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    snapshot = recorder.snapshot(3, {})
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        recorder.save(snapshot)
    monkeypatch.undo()
    recorder.close()
    assert {p.name for p in (recorder.folder / "checkpoint").iterdir()} == {"000000001.pt", "000000002.pt"}
    state, complaints = opened(tmp_path).resume()
    assert state is not None and state["weight"] == 2 and not complaints


def test_image_grid_holds_each_cell_at_its_place(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    images = (torch.arange(5.0) / 255).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    name = recorder.image(7, images, columns=3)
    grid = Image.open(recorder.folder / name)
    assert name == "images/0000007.png" and grid.size == (12, 8)
    assert [grid.getpixel((k % 3 * 4, k // 3 * 4)) for k in range(5)] == [(k, k, k) for k in range(5)]


def test_a_snapshot_is_what_the_state_was(tmp_path: Path) -> None:
    """Saved later, after the weights have moved on and lines were written, it leads back to where it was taken."""
    recorder, weight = opened(tmp_path), torch.zeros(2)
    recorder.write("train", {"queries": 1})
    snapshot = recorder.snapshot(1, {"weight": weight})
    weight += 1
    recorder.write("train", {"queries": 2})
    recorder.save(snapshot)
    recorder.close()
    recorder = opened(tmp_path)
    state, _ = recorder.resume()
    assert state is not None and state["weight"].tolist() == [0, 0] and lines(recorder) == [1]


def test_sessions_survive_half_a_line(tmp_path: Path) -> None:
    recorder = opened(tmp_path)
    recorder.add_session({"git": "a"}, 0)
    with open(recorder.folder / "sessions.jsonl", "a") as file:
        file.write('{"git": "kil')
    assert [s["git"] for s in read_sessions(recorder.folder)] == ["a"]
    recorder.add_session({"git": "b"}, 7)
    assert read_sessions(recorder.folder) == [{"git": "a", "queries": 0}, {"git": "b", "queries": 7}]


@pytest.mark.parametrize("schema", [1, 2])
def test_other_weights_are_refused(tmp_path: Path, schema: int) -> None:
    """Whether the first session stands in the configuration, as in records of schema 1, or in a file of its own."""
    made = config()
    recorder = Recorder(made.folder(tmp_path), made, {})
    recorder.add_session({"weights": {"unet": "abc"}}, 0)
    recorder.close()
    file = recorder.folder / "config.json"
    content = json.loads(file.read_text())
    assert content.keys() == {"schema", "config", "config_hash"} and content["schema"] == 2
    if schema == 1:
        (recorder.folder / "sessions.jsonl").unlink()
        file.write_text(json.dumps({**content, "schema": 1, "provenance": {"weights": {"unet": "abc"}}}))
    assert [s["queries"] for s in read_sessions(recorder.folder)] == [0]
    with pytest.raises(UserError, match="other weights of unet"):
        Recorder(made.folder(tmp_path), made, {"weights": {"unet": "abd"}})
    Recorder(made.folder(tmp_path), made, {"weights": {"unet": "abc"}}).close()
