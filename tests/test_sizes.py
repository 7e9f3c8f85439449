"""Files and functions stay as short as one can read at once: product, recipe, tests and checks alike."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("overopt_bench", "algorithms", "rewards", "tests", "benchmarks", ".ci")
FILE, FUNCTION = 300, 60  # lines


def sources() -> Iterator[tuple[str, str]]:
    """Every Python file, once: its path from the root and its text; linked folders are met where they really are."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT)
            if not any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(ROOT)):
                yield relative.as_posix(), path.read_text(encoding="utf-8")


def functions(text: str) -> Iterator[tuple[str, int]]:
    """The name and the number of lines of every function and method, signature and docstring included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_folder_is_looked_into() -> None:
    seen = {path.split("/")[0] for path, _ in sources()}
    assert seen == set(FOLDERS)


def test_no_file_is_longer_than_300_lines() -> None:
    assert [f"{path}: {n}" for path, text in sources() if (n := len(text.splitlines())) > FILE] == []


def test_no_function_is_longer_than_60_lines() -> None:
    long = [f"{path}: {name} {n}" for path, text in sources() for name, n in functions(text) if n > FUNCTION]
    assert long == []
