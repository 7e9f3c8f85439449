"""What the instrument's sections share: which runs are meant, and how their tables look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from overopt_bench.report.load import Run
from overopt_bench.report.statistics import Difference
from overopt_bench.report.wording import interval, wins

HERE = Path(__file__).parent
REFERENCE = HERE.parent / "reference" / "mini"


def of(runs: Sequence[Run], label: str, proxy: str, reference: bool = False) -> list[Run]:
    """The runs of a label on a proxy, by seed; those of the reference records, or those made here."""
    own = [
        run for run in runs
        if (run.label, run.proxy) == (label, proxy) and (REFERENCE in run.folder.parents) is reference
    ]  # fmt: skip
    return sorted(own, key=lambda run: int(run.config["seed"]))


def told(one: Difference) -> dict[str, str]:
    """A difference as the tables here have it."""
    return {"difference": f"{one.value:+.4f}", "interval": interval(one, 4).removeprefix("95 % interval "),
            "above": wins(one), "p": f"{one.p:.3f}"}  # fmt: skip


def table(rows: pd.DataFrame) -> str:
    """A table in Markdown."""
    lines = [[*rows.columns], ["---"] * len(rows.columns), *rows.astype(str).values.tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
