"""A report made where an older one is leaves nothing of the older one behind, and everything else as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fake_runs import write_run

from overopt_bench.cli import main
from overopt_bench.report import build_report
from overopt_bench.report.written import HEAD, LIST, read_list, replace_listed


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_smaller_report_in_the_same_folder_is_that_of_an_empty_folder(tmp_path: Path) -> None:
    """To the byte, beside whatever else is in the folder; and the list has all but itself and the page."""
    runs, again, fresh = tmp_path / "runs", tmp_path / "again", tmp_path / "fresh"
    for proxy, steps in (("aesthetic", 10), ("pickscore", 10), ("aesthetic", 20)):  # two groups, one of two proxies
        write_run(runs / str(steps), "ddpo", proxy=proxy, num_steps=steps)
    build_report([runs], again)
    larger = files_below(again)
    assert any("stills_pickscore" in name for name in larger) and any(name.count("/") == 2 for name in larger)
    own = {again / "figures" / "my own.png", again / "notes.md"}
    for path in own:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    shutil.rmtree(runs / "20")
    shutil.rmtree(runs / "10" / "mini" / "pickscore")
    build_report([runs], again)
    build_report([runs], fresh)
    made = files_below(fresh)
    assert files_below(again) == made | {path.relative_to(again).as_posix() for path in own}
    assert [name for name in made if (again / name).read_bytes() != (fresh / name).read_bytes()] == []
    assert (fresh / LIST).read_text().splitlines() == [HEAD, *sorted(made - {"index.html", LIST})]
    assert {path.name for path in again.iterdir() if path.is_dir()} == {"figures", "tables"}
    assert all(path.read_text() == "mine" for path in own)


def test_a_list_removes_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    out, outside = tmp_path / "report", tmp_path / "thesis.pdf"
    out.mkdir()
    outside.write_text("mine")
    (out / "linked").symlink_to(tmp_path)
    (out / LIST).write_text(f"{HEAD}\n../thesis.pdf\n{outside}\nlinked/thesis.pdf\nlinked\n.\n\n\0\n")
    replace_listed(out, read_list(out), [])
    assert outside.read_text() == "mine" and (out / "linked").is_symlink()
    assert (out / LIST).read_text() == f"{HEAD}\n" and read_list(out) == set()


@pytest.mark.parametrize("text", ["thesis.pdf\n", "", "\n"])
def test_a_file_of_the_lists_name_that_is_no_list_is_left_alone(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs")
    out, thesis = tmp_path / "mine", tmp_path / "mine" / "thesis.pdf"
    out.mkdir()
    thesis.write_text("mine")
    (out / LIST).write_text(text)
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 2
    assert "files.txt exists and is not the list of a report; use another --out" in capsys.readouterr().err
    assert files_below(out) == {LIST, "thesis.pdf"} and (out / LIST).read_text() == text
