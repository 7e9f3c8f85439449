"""Live trackers: refused before anything is written, one curve whatever happened, closed on every way out."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from overopt_bench.cli import main
from overopt_bench.config import RunConfig, resolve
from overopt_bench.errors import Stopped
from overopt_bench.recording.trackers import open_tracker
from overopt_bench.training import loop as train

tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
GIVEN = {
    "algo": "ddpo", "proxy": "aesthetic", "suite": "mini", "budget": 24, "eval_points": 2, "eval_images": 4, "num_steps": 2,
    "params": {"samples_per_epoch": 8, "images_per_prompt": 4},
}  # fmt: skip
WORDS = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--device", "cpu", "--tracker"]


def config() -> RunConfig:
    return resolve(GIVEN)


def drawn(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in all event files of a run: name to (queries, value)."""
    reader = tensorboard.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in reader.Tags()["scalars"]}


def recorded(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The same curves from the record."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        for name in row.keys() - {"event", "queries", "nfe", "seconds", "round", "point"}:
            if row["event"] in ("train", "eval") and row[name] is not None:
                curves.setdefault(name, []).append((row["queries"], pytest.approx(row[name], rel=1e-6)))
    return curves


def interrupt(session: Any, at: int) -> None:
    """Ask a session to stop before its round ``at``."""
    step = session._step

    def stopping() -> None:
        if session.round == at - 1:
            session.stop.number = 2
        step()

    session._step = stopping


def test_one_curve_whatever_happened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the third round, cut back to before the second, and resumed: the curve is that of the record."""
    start, keep, kept = train._Session._start, train._Session._keep, []

    def stopped_in_the_third(session: Any) -> None:
        start(session)
        interrupt(session, 3)

    def keep_the_first(session: Any) -> None:
        keep(session)
        if session.round == 1:
            kept.append(session.kept)
        session.kept = kept[0] if kept else session.kept

    with monkeypatch.context() as patched:
        patched.setattr(train._Session, "_start", stopped_in_the_third)
        patched.setattr(train._Session, "_keep", keep_the_first)
        with pytest.raises(Stopped):
            train.run(config(), out=tmp_path, tracker="tensorboard")
    folder = config().folder(tmp_path)
    assert [queries for queries, _ in drawn(folder)["loss"]] == [8, 16]  # flushed, though it was stopped
    train.run(config(), out=tmp_path, tracker="tensorboard")
    assert [queries for queries, _ in drawn(folder)["loss"]] == [8, 16, 24]
    assert drawn(folder) == recorded(folder)


def test_a_tracker_that_comes_late_shows_the_beginning(tmp_path: Path) -> None:
    rows = [{"event": "train", "queries": 8, "nfe": 1, "loss": 0.5}, {"event": "scores", "queries": 8, "x": 1.0}]
    tracker = open_tracker("tensorboard", config(), tmp_path, "now", rows)
    tracker.record({"event": "eval", "queries": 16, "point": 1, "train/human/mean": 0.25, "train/diversity": None})
    tracker.close()
    assert drawn(tmp_path) == {"loss": [(8, 0.5)], "train/human/mean": [(16, 0.25)]}


@pytest.mark.parametrize(
    ("kind", "message"), [("tensorbord", "did you mean 'tensorboard'"), ("wandb", "pip install wandb")]
)
def test_a_tracker_that_cannot_be_is_refused_first(
    kind: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*WORDS, kind, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_weights_and_biases_is_one_run_and_gets_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for the package, which takes no step back."""
    logged: list[tuple[str, int]] = []

    def init(*, id: str, resume: str, **_: Any) -> Any:
        steps = [step for name, step in logged if name == id]
        return SimpleNamespace(
            step=max(steps) + 1 if steps else 0, log=lambda values, step: logged.append((id, step)), finish=lambda: None
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    rows = [{"event": "train", "queries": k, "loss": 0.0} for k in (8, 16)]
    open_tracker("wandb", config(), tmp_path, "monday", rows).close()
    tracker = open_tracker("wandb", config(), tmp_path, "monday", rows[:1])
    for queries in (16, 24):
        tracker.record({"event": "train", "queries": queries, "loss": 0.0})
    assert [step for _, step in logged] == [8, 16, 24] and len({name for name, _ in logged}) == 1
    open_tracker("wandb", config(), tmp_path, "tuesday", rows).close()
    assert len({name for name, _ in logged}) == 2
