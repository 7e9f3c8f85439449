"""What ``list`` and ``doctor`` tell: parameters with their sources, and how a run was made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_runs import write_run

from overopt_bench import cli


def test_list_shows_parameters_defaults_and_sources(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "algorithms"]) == 0
    lines = capsys.readouterr().out.splitlines()
    slide = next(i for i, line in enumerate(lines) if line.startswith("  slide"))
    assert lines[slide].endswith("does nothing along a gradient; needs a differentiable proxy")
    assert lines[slide + 1].split() == ["lr=0.001", "learning", "rate", "[made", "up", "for", "the", "tests]"]
    climb = next(i for i, line in enumerate(lines) if line.startswith("  climb"))
    assert "  tiny 7  " in lines[climb + 2] and "tiny" not in lines[slide + 2]
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "[tiny; differentiable; reads the prompt; no encoder" in text and "gold=truth  num_steps=4" in text


def test_list_says_everything_once_and_in_whole_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    text = capsys.readouterr().out
    assert "[arXiv 2305.13301]" in text and "micro_batch=" not in text
    presets = text.partition("\npresets\n")[2].splitlines()
    assert len(presets) > 4 and all(line.endswith(".") for line in presets)


def test_doctor_tells_how_a_run_was_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A record of schema 1, gone on with on another machine."""
    folder = write_run(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    first = {
        "versions": {"torch": "2.4"},
        "hardware": {"threads": 2, "processes": 1},
        "git": "abc",
        "started": "monday",
    }
    content["config"] |= {"model": None, "precision": "float32"}
    (folder / "config.json").write_text(json.dumps({**content, "provenance": first}))
    second = {**first, "hardware": {"threads": 4, "processes": 1}, "started": "tuesday", "queries": 128}
    (folder / "sessions.jsonl").write_text(json.dumps(second) + "\n{half")
    assert cli.main(["doctor", str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "run       ddpo on aesthetic, gold human, seed 0" in out
    assert "session 1 from 0 queries, monday: threads 2, processes 1, revision abc" in out
    assert "session 2 from 128 queries, tuesday: threads 4, processes 1, revision abc" in out
    assert [line for line in out if line.startswith("changed")] == [
        "changed   hardware.threads: 2, then 4 from query 128"
    ]


def test_doctor_refuses_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
