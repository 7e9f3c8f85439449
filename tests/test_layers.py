"""The rooms and their arrows: what may import what, as pyproject's contracts say it (import-linter)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the package's code in which ``algorithms`` and ``rewards`` are folders: the linter follows no links."""
    skipped = shutil.ignore_patterns("__pycache__", "weights", "assets", "*.md", "*.txt")
    shutil.copytree(ROOT / "overopt_bench", tmp_path / "overopt_bench", ignore=skipped)
    for name in ("algorithms", "rewards"):  # text files instead of links where git was told to make none
        shutil.rmtree(tmp_path / "overopt_bench" / name, ignore_errors=True)
        (tmp_path / "overopt_bench" / name).unlink(missing_ok=True)
        shutil.copytree(ROOT / name, tmp_path / "overopt_bench" / name, ignore=skipped)
        (tmp_path / "overopt_bench" / name / "__init__.py").touch()  # nor does it see folders without one
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint(house: Path) -> tuple[int, str]:
    """Run the linter on the copy; its exit status and what it says."""
    done = subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache"], cwd=house, env={**os.environ, "PYTHONPATH": str(house)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_every_import_points_down(house: Path) -> None:
    """Imports under TYPE_CHECKING and inside functions count too; no room is left out."""
    status, said = lint(house)
    assert status == 0, said


def test_every_room_is_in_the_wheel(house: Path) -> None:
    """The list of packages is written by hand, for the two linked folders could not be discovered."""
    rooms = {path.parent.relative_to(house).as_posix().replace("/", ".") for path in house.rglob("*.py")}
    assert rooms == set(re.findall(r'^    "(overopt_bench[\w.]*)",$', packages(house), re.MULTILINE))


def packages(house: Path) -> str:
    """The list of packages as pyproject.toml writes it."""
    return (house / "pyproject.toml").read_text(encoding="utf-8").split("[tool.setuptools]", 1)[1].split("]", 1)[0]


def up(house: Path) -> str:
    (house / "overopt_bench/types/metric.py").open("a").write(
        "\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from overopt_bench.training import loop\n"
    )
    return "overopt_bench.types is not allowed to import overopt_bench.training"


def up_from_a_linked_folder(house: Path) -> str:
    (house / "overopt_bench/algorithms/mine.py").write_text("def f():\n    import overopt_bench.evaluation.scoring\n")
    return "overopt_bench.algorithms is not allowed to import overopt_bench.evaluation"


def by_name(house: Path) -> str:
    (house / "overopt_bench/training/mine.py").write_text("from overopt_bench.algorithms.ddpo import DDPO\n")
    return "overopt_bench.training is not allowed to import overopt_bench.algorithms"


def new_room(house: Path) -> str:
    (house / "overopt_bench/attic").mkdir()
    (house / "overopt_bench/attic/__init__.py").write_text("")
    return "attic"


@pytest.mark.parametrize("offend", [up, up_from_a_linked_folder, by_name, new_room])
def test_an_offender_is_named(offend: Callable[[Path], str], house: Path) -> None:
    expected = offend(house)
    status, said = lint(house)
    assert status == 1 and expected in said, said
