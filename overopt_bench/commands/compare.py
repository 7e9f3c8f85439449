"""Two labels seed by seed, from what their runs recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.errors import UserError, unknown_name
from overopt_bench.recording.folders import RESULTS, run_folders
from overopt_bench.recording.labels import label_of

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 150  # of the table where nobody says how wide the terminal is


def compare(a: str, b: str, results: Path | None) -> pd.DataFrame:
    """Compare two labels, or the runs of two folders, see ``report.versus``.

    Args:
        a: a label among the results, or a run folder or folder of runs of one label.
        b: the other.
        results: where labels are looked for; the user's own runs in ``results`` where None.

    Raises:
        UserError: where one is neither a label nor a folder, or the two cannot be compared; it says why.
    """
    if results is not None and not results.is_dir():
        raise UserError(f"--results {results} is no folder; name a folder of runs")
    labels = _labels(results)
    for given in (a, b):
        if given not in labels and not Path(given).is_dir():
            where = "results" if results is None else str(results)
            if not labels:
                raise UserError(f"{given} is no folder, and there is no run in {where} of which it could be the label")
            raise unknown_name(f"folder and in {where} no label", given, labels)
    if a == b:
        raise UserError(f"{a} is given twice; name two labels, or two folders of runs")
    # what computes is imported only now, when a misspelt name cannot be refused any more
    from overopt_bench.report.versus import read_side, versus

    first, second = (read_side(given, [results] if results else None, given in labels) for given in (a, b))
    return versus(first, second)


def _labels(results: Path | None) -> set[str]:
    """The labels of the runs in a folder, by their configurations alone."""
    found = set()
    for folder in run_folders(results or RESULTS, own=results is None):
        try:
            found.add(label_of(json.loads((folder / "config.json").read_bytes())["config"]))
        except (OSError, ValueError, KeyError, TypeError):  # a damaged one: the report names those
            continue
    return found


def show(table: pd.DataFrame, a: str, b: str) -> None:
    """Print the table for people, and what must be known to read it."""
    from rich.console import Console
    from rich.table import Table

    from overopt_bench.report.wording import few_pairs

    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    shown = Table(*_heads(table), title=f"A = {a}, B = {b}: A - B", title_justify="left")
    for row in table.to_dict("records"):
        shown.add_row(*_cells({str(name): value for name, value in row.items()}, _heads(table)))
    console.print(shown, markup=False)
    paired = [int(count) for count, is_paired in zip(table["pairs"], table["paired"], strict=True) if is_paired]
    notes = [
        "Paired by seed, 95 % t intervals, p of all sign flips; Holm: corrected for all rows of this table that have pairs"
        " enough to be shown. A fall is from the cross-fitted peak, which is read on other images than it is located on, to the"
        " end.",
        few_pairs(paired),
        ""
        if table["paired"].all()
        else "Rows marked * have fewer than two common seeds: Welch's interval and p of all runs.",
    ]
    for note in filter(None, notes):
        console.print(note, markup=False, highlight=False)


def _heads(table: pd.DataFrame) -> list[str]:
    some = ["runs"] if "runs" in table.columns else []
    return [
        *some,
        "proxy",
        "reward",
        "prompts",
        "what",
        "A",
        "B",
        "A - B",
        "95 % interval",
        "A above B",
        "p",
        "p (Holm)",
    ]


def _cells(row: Mapping[str, Any], heads: Sequence[str]) -> list[str]:
    known = row["low"] == row["low"]  # nan is unlike itself
    made = {
        "prompts": str(row["prompts"]).removesuffix(" prompts"),
        "A": f"{row['A']:.4f}", "B": f"{row['B']:.4f}", "A - B": f"{row['difference']:+.4f}",
        "95 % interval": f"{row['low']:.4f} to {row['high']:.4f}" if known else "-",
        "A above B": f"{row['wins']:g} of {row['of']} pairs" + ("" if row["paired"] else "*"),
        **{name: f"{row[name]:.4f}" if row[name] == row[name] else "-" for name in ("p", "p (Holm)")},
    }  # fmt: skip
    return [made.get(head, str(row.get(head, ""))) for head in heads]
