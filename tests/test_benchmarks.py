"""The comparison with trl: our side answers, its rounds are those of the case, and the table says what was measured."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def against_trl(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, imported as its own folder sees it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("against_trl")


def test_the_table_has_medians_and_leaves_out_what_was_not_timed(against_trl: ModuleType) -> None:
    rounds = {"ours": [2.0, 1.0, 4.0], "bare": [1.0, 1.0, 2.0], "trl": [3.0, 2.0, 4.0]}
    lines = against_trl.table({"a case": {"rounds": rounds, "first": {"ours": [9.0]}}}).splitlines()
    assert lines[2] == "| a case | 2.0000 |  |  | 1.0000 | 3.0000 | 2.00 |  | 1.50 |  |  |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")


@pytest.mark.slow
def test_our_side_serves_both_kinds_of_case(against_trl: ModuleType) -> None:
    """The cases of a kind differ in numbers alone, and a process has to start for each."""
    kinds = {settings.algorithm: case for case, settings in against_trl.CASES.items()}
    assert [*kinds] == ["ddpo", "alignprop"]
    for case in kinds.values():
        worker = against_trl.Worker("ours.py", [case, "4", "1"], {"OMP_NUM_THREADS": "1"})
        assert worker.names[:3] == ["ours", "bare", "compiled"] and ("AlignProp" in case) == (
            "recomputed" in worker.names
        )
        for name in {*worker.names} - {"compiled"}:  # which takes minutes
            seconds = worker.round(name)
            assert 0 < seconds["cpu"] < 600 and seconds["wall"] > 0
        worker.close()
        assert worker.process.returncode == 0


def test_a_side_that_cannot_start_ends_the_comparison(against_trl: ModuleType) -> None:
    with pytest.raises(SystemExit, match="ended with 2; see above"):
        against_trl.Worker("no such side.py", ["DDPO, no guidance", "4", "1"], {})
