"""The cells of tables: what people read of them, what programs read, and the files that hold them."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from overopt_bench.report.escape import latex_text, markdown_text
from overopt_bench.report.peaks import Paired
from overopt_bench.report.statistics import Estimate
from overopt_bench.text import csv_text

Cell = Estimate | Paired | float | int | str | None


def show(cell: Cell) -> str:
    """A cell as people read it: an interval in brackets, a standard error behind a sign, a dash for nothing or no number."""
    if isinstance(cell, Paired):
        return _known(cell.mean, ".4f") + (f" ± {cell.error:.4f}" if isfinite(cell.error) else "")
    if isinstance(cell, Estimate):
        known = cell.low is not None and cell.high is not None and isfinite(cell.low) and isfinite(cell.high)
        return _known(cell.value, ".3f") + (f" [{cell.low:.3f}, {cell.high:.3f}]" if known else "")
    if cell is None or isinstance(cell, str | int):
        return "-" if cell is None else str(cell)
    return _known(cell, ".0f")


def _known(value: float, form: str) -> str:
    """A number, or a dash where it is none: not a number is never shown as one."""
    return f"{value:{form}}" if isfinite(value) else "-"


def numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The same table with one number a column: an estimate's ``low`` and ``high``, a difference's ``error`` beside it."""
    columns: dict[str, list[Any]] = {}
    for name, cells in table.items():
        columns[str(name)] = [
            c.value if isinstance(c, Estimate) else c.mean if isinstance(c, Paired) else c for c in cells
        ]
        if any(isinstance(c, Estimate) for c in cells):
            for bound in ("low", "high"):
                columns[f"{name}, {bound}"] = [getattr(c, bound, None) for c in cells]
        if any(isinstance(c, Paired) for c in cells):
            columns[f"{name}, error"] = [getattr(c, "error", None) for c in cells]
    return pd.DataFrame(columns)


def write(table: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Writes CSV, Markdown and LaTeX of one table, each with all text made literal; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    as_csv, as_markdown, as_latex = files = [folder / f"{name}.{suffix}" for suffix in ("csv", "md", "tex")]
    plain = numbers(table).map(_defused)
    plain.columns = [_defused(str(column)) for column in plain.columns]
    plain.to_csv(as_csv, index=False)
    rows = [[*table.columns], *(list(row) for row in table.itertuples(index=False))]
    markdown = [f"| {' | '.join(_formatted(cell, markdown_text) for cell in row)} |" for row in rows]
    markdown.insert(1, "|" + "---|" * len(table.columns))
    as_markdown.write_text("\n".join(markdown) + "\n", encoding="utf-8")
    head, *body = [" & ".join(_formatted(cell, latex_text, _latex_number) for cell in row) + r" \\" for row in rows]
    lines = [r"\begin{tabular}{" + "l" * len(table.columns) + "}", r"\toprule", head, r"\midrule", *body]
    as_latex.write_text("\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n", encoding="utf-8")
    return files


def _defused(value: Any) -> Any:
    """A cell on one line, for some readers begin a new row even at line breaks within a cell."""
    return csv_text(re.sub(r"[\r\n]+", " ", value)) if isinstance(value, str) else value


def _formatted(cell: Cell, text: Callable[[str], str], number: Callable[[str], str] = str) -> str:
    """A cell as people read it: ``text`` makes words from a record literal, ``number`` dresses what ``show`` wrote."""
    return text(cell) if isinstance(cell, str) else number(show(cell))


def _latex_number(shown: str) -> str:
    return re.sub(r"-(?=\d)", "$-$", shown.replace("±", r"$\pm$"))
