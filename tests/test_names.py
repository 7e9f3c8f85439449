"""The harness knows no algorithm and no suite by its name: what it must know of one stands on the class."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import overopt_bench
from overopt_bench.commands import settings as prepare
from overopt_bench.registry import algorithms, suites

PACKAGE = Path(overopt_bench.__file__).parent
# folders in which names belong: the algorithms, rewards and suites themselves, and named settings
AT_HOME = ("algorithms", "rewards", "mitigations", "suites", "presets")
# plain words that are an algorithm's name too: the column of the base model in the table of `eval`
WORDS = {("commands/eval.py", "base")}


def constants(tree: ast.Module) -> Iterator[ast.Constant]:
    """Yield the string constants of a module; sentences such as docstrings and help texts equal no name."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def strangers(source: str, names: set[str], file: str = "") -> list[str]:
    """List the constants of a module that equal a name."""
    found = constants(ast.parse(source))
    return [f"{file}:{c.lineno} {c.value!r}" for c in found if c.value in names and (file, c.value) not in WORDS]


@pytest.fixture(scope="module")
def names() -> set[str]:
    return {*algorithms.names(), *suites.names()}


def test_no_module_of_the_harness_names_an_algorithm_or_a_suite(names: set[str]) -> None:
    assert names >= {"ddpo", "tdpo_r", "best_of_n", "mini", "sd14"}
    files = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] not in AT_HOME]
    assert len(files) > 40
    found = [
        one for path in files
        for one in strangers(path.read_text(encoding="utf-8"), names, path.relative_to(PACKAGE).as_posix())
    ]  # fmt: skip
    assert found == []


def test_what_is_looked_for_would_be_found(names: set[str]) -> None:
    assert strangers('if algo == "ddpo":\n    pass', names) == [":1 'ddpo'"]
    assert strangers('"""As ddpo does."""\nSUITES = {"mini": 1}', names) == [":2 'mini'"]


def test_a_suite_from_outside_may_be_the_default(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of the highest rank that can run here; rank 0 is for those that must be asked for."""
    monkeypatch.setattr(suites.get("tiny"), "default_rank", 9)
    assert prepare.choose_suite(None) == ("tiny", "it can run here")
    monkeypatch.setattr(suites.get("tiny"), "missing", lambda self: "no pixels")
    monkeypatch.setattr(suites.get("sd14"), "default_rank", 0)
    assert prepare.choose_suite(None) == ("mini", "no pixels")
    monkeypatch.setattr(suites.get("tiny"), "default_rank", 0)
    assert prepare.choose_suite(None) == ("mini", "the default")
