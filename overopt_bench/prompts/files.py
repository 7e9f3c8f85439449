"""Prompts from a user's file: text, CSV, TSV, JSON lines or a JSON array, by the ending of its name."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from overopt_bench.errors import UserError, unknown_name
from overopt_bench.text import read_text

COLUMNS = ("prompt", "prompts", "text", "caption")  # taken in this order where none is asked for
LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines knows eight more, which stand inside prompts


def read_prompt_file(path: Path, column: str | None = None) -> tuple[list[str], list[str]]:
    """The prompts of a file, as they stand there, and what a user should be told about how they were read.

    Args:
        path: ``.txt`` or no ending (a prompt a line), ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.json`` (strings,
            or objects with the same keys).
        column: of the prompts, or their key in JSON; where it is None, the first of ``COLUMNS`` that is there, or the
            only one.

    Raises:
        UserError: one line for whatever is wrong with the file, with the line in it.
    """
    suffix = path.suffix.lower()
    if suffix not in READERS:
        error = unknown_name("kind of prompt file", suffix, [kind for kind in READERS if kind])
        raise UserError(f"--prompts {path}: {error}; export it as one of these")
    text = read_text(path, "--prompts")
    if "\0" in text:
        raise UserError(f"--prompts {path}: the file holds NUL characters, so it is no text; export it as UTF-8 text")
    notes: list[str] = []
    try:
        prompts = READERS[suffix](text, column, notes)
    except (ValueError, UserError) as error:
        raise UserError(f"--prompts {path}: {error}") from None
    if not prompts:
        raise UserError(f"--prompts {path}: the file holds no prompt")
    return prompts, [f"--prompts {path}: {note}" for note in notes]


def _from_lines(text: str, column: str | None, notes: list[str]) -> list[str]:
    """One prompt a line; blank lines are none."""
    if column is not None:
        raise ValueError(f"--prompt-column {column}: a text file has no columns; a .csv, .tsv or .jsonl file has")
    lines = [line for line in LINE_END.split(text) if line.strip()]
    if lines and _is_json(lines[0]):
        raise ValueError("its first line is JSON; give a file of JSON lines the ending .jsonl, an array .json")
    return lines


def _is_json(line: str) -> bool:
    """Whether a line is an object or an array, or opens one that goes on in the next line."""
    if line.strip() in ("[", "{"):
        return True
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _from_table(text: str, column: str | None, notes: list[str], delimiter: str) -> list[str]:
    """The cells of one column below the first line, which names the columns; cells may be quoted and hold line ends."""
    rows = _rows(text, delimiter)
    _, names = next(rows, (0, []))
    if not names:
        return []
    if len(names) == 1 and (other := next((m for m in ";\t|," if m in names[0] and m != delimiter), None)):
        raise ValueError(f"its columns seem to be separated by {other!r}, not by {delimiter!r}")
    place = names.index(_chosen(names, column, notes))
    prompts = []
    for line, cells in rows:
        if len(cells) != len(names):
            raise ValueError(
                f"line {line} has {len(cells)} cells and the first line {len(names)}; a prompt that holds"
                f" {delimiter!r} or a quotation mark stands in quotation marks"
            )
        if not cells[place].strip():
            raise ValueError(f"line {line} has no prompt in the column {names[place]!r}; delete it")
        prompts.append(cells[place])
    return prompts


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line that it begins in."""
    reader, begin = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        for cells in reader:
            if cells:
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {begin}: {error}") from None


def _from_json_lines(text: str, column: str | None, notes: list[str]) -> list[str]:
    """A string or an object a line; blank lines are none."""
    lines = enumerate(LINE_END.split(text), 1)
    return _values([(f"line {k}", _parsed(line, f"line {k}")) for k, line in lines if line.strip()], column, notes)


def _from_json(text: str, column: str | None, notes: list[str]) -> list[str]:
    """An array of strings or objects."""
    content = _parsed(text, "the file")
    if not isinstance(content, list):
        raise ValueError("must hold an array of prompts, or of objects; JSON lines have the ending .jsonl")
    return _values([(f"item {k}", value) for k, value in enumerate(content, 1)], column, notes)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from None


def _values(items: Sequence[tuple[str, Any]], column: str | None, notes: list[str]) -> list[str]:
    """The strings, or what the objects have under the chosen key; the first object's keys are the columns."""
    first = next((item for _, item in items if isinstance(item, dict)), None)
    if first is None and column is not None:
        raise ValueError(f"--prompt-column {column}: its items have no keys, they are prompts themselves")
    key = None if first is None else _chosen(list(first), column, notes)
    prompts = []
    for where, item in items:
        if isinstance(item, dict) and key not in item:
            raise ValueError(f"{where} has no {key!r} but {', '.join(map(repr, item)) or 'nothing'}")
        value = item[key] if isinstance(item, dict) else item
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where} holds {value!r} where a prompt should be")
        prompts.append(value)
    return prompts


def _chosen(names: Sequence[str], asked: str | None, notes: list[str]) -> str:
    """The column of the prompts: the one asked for, else a usual name, else the only one."""
    by_form = {name.strip().casefold(): name for name in names}
    listed = ", ".join(repr(name) for name in names)
    if asked is not None:
        chosen = asked if asked in names else by_form.get(asked.strip().casefold())
        if chosen is None:
            raise UserError(f"--prompt-column: {unknown_name('column', asked, names)}")
    else:
        chosen = next((by_form[usual] for usual in COLUMNS if usual in by_form), names[0] if len(names) == 1 else None)
        if chosen is None:
            raise ValueError(f"say which column holds the prompts, with --prompt-column NAME; there are {listed}")
        if len(names) == 1 and chosen.strip().casefold() not in COLUMNS:
            notes.append(f"{chosen!r} is taken as the column's name, not as a prompt")
    if names.count(chosen) > 1:
        raise ValueError(f"several columns are called {chosen!r}; there are {listed}")
    return chosen


READERS: dict[str, Callable[[str, str | None, list[str]], list[str]]] = {
    "": _from_lines,
    ".txt": _from_lines,
    ".csv": lambda text, column, notes: _from_table(text, column, notes, ","),
    ".tsv": lambda text, column, notes: _from_table(text, column, notes, "\t"),
    ".jsonl": _from_json_lines,
    ".ndjson": _from_json_lines,
    ".json": _from_json,
}
