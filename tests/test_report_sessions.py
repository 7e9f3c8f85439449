"""A run that went on elsewhere has several sessions: both schemas are read, and what changed is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_runs import PROVENANCE, write_run

from overopt_bench.recording.sessions import session_differences
from overopt_bench.report import build_report
from overopt_bench.report.groups import group_runs
from overopt_bench.report.load import find_runs

FIRST: dict[str, Any] = {
    "queries": 0, "started": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2.4.0", "peft": "0.15"},
    "hardware": {"device": "cpu", "threads": 2, "processes": 1}, "git": "aaa", **PROVENANCE,
}  # fmt: skip


def resumed(queries: int, **changes: Any) -> dict[str, Any]:
    return {**FIRST, "queries": queries, "started": "2026-01-02T00:00:00+00:00", **changes}


def test_both_schemas_are_read_and_belong_together(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", seed=0)
    write_run(tmp_path, "ddpo", seed=1, sessions=[FIRST, resumed(200)])
    old, new = find_runs([tmp_path])
    assert old.sessions == [{"queries": 0, **PROVENANCE}] and old.provenance == old.sessions[0]
    assert new.sessions == [FIRST, resumed(200)] and new.provenance == FIRST
    (group,) = group_runs([old, new])
    assert len(group.runs) == 2


def test_differences_have_one_line_a_fact() -> None:
    elsewhere = {"device": "cuda", "threads": 2, "processes": 2}
    sessions = [
        FIRST,
        resumed(200, versions={"torch": "2.5.0", "peft": "0.15"}, hardware=elsewhere),
        resumed(300, versions={"torch": "2.4.0", "peft": "0.15"}, hardware=elsewhere, git=None),
    ]
    assert session_differences(sessions) == [
        ("versions.torch", "2.4.0, then 2.5.0 from query 200, then 2.4.0 from query 300"),
        ("hardware.device", "cpu, then cuda from query 200"),
        ("hardware.processes", "1, then 2 from query 200"),
        ("git", "aaa, then null from query 300"),
    ]
    assert session_differences([FIRST, resumed(200)]) == [] == session_differences([FIRST])


def test_the_page_lists_runs_whose_sessions_differ_and_no_others(tmp_path: Path) -> None:
    write_run(tmp_path, "ddpo", seed=0, sessions=[FIRST, resumed(200, git="bbb")])
    write_run(tmp_path, "ddpo", seed=1, sessions=[FIRST, resumed(200)])
    html = build_report([tmp_path], tmp_path / "report").read_text(encoding="utf-8")
    section = html.split("Runs whose sessions differ", 1)[1].split("</section>")[0]
    assert "aaa, then bbb from query 200" in section and "seed0" in section and "seed1" not in section


def test_a_torn_last_line_costs_nothing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, sessions=[FIRST, resumed(200)])
    with open(folder / "sessions.jsonl", "a") as file:
        file.write(json.dumps(resumed(300))[:50])
    (run,) = find_runs([tmp_path])
    assert run.state == "complete" and len(run.sessions) == 2
