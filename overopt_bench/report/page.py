"""One HTML page, with the figures of very many runs beside it: findings, verdicts, filmstrip, figures, tables, and the state of every run.

Every text in it may come from a stranger's record. The template escapes all of it, JSON stands in ``script`` elements
that cannot be closed from within, and the page's own policy lets the browser run one script and use one style sheet:
the two that the report wrote, known by their digests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from overopt_bench.recording.sessions import session_differences
from overopt_bench.report.cells import show
from overopt_bench.report.findings import Finding
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run
from overopt_bench.report.reference import other_parameters
from overopt_bench.report.verdicts import Verdict

LONG = 40  # rows of a table that is shown when it is asked for
NAMED = 20  # folders in a sentence
ROOM = 2_500_000  # bytes of figures that are written into the page; those of a few runs are all in it
TEMPLATES = Path(__file__).parent / "templates"


def data_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@dataclass
class Drawn:
    """A figure as the page shows it.

    Attributes:
        title: of the figure.
        path: of its PNG.
        proxy: what its runs were trained on; None where it shows all proxies.
        src: where the page has it from.
        size: width and height in pixels, for which the page leaves room before it is loaded.
    """

    title: str
    path: Path
    proxy: str | None
    src: str = ""
    size: tuple[int, int] = (0, 0)

    @property
    def files(self) -> tuple[Path, Path]:
        """The PNG and the PDF, see ``layout.save``."""
        return self.path, self.path.with_suffix(".pdf")


def place_figures(figures: Iterable[Drawn], out: Path) -> None:
    """Puts figures into the page up to ``ROOM`` bytes; the page loads the others from beside it as one comes to them."""
    room = ROOM
    for drawn in figures:
        with Image.open(drawn.path) as image:
            drawn.size = image.size
        room -= drawn.path.stat().st_size
        drawn.src = data_uri(drawn.path) if room >= 0 else quote(drawn.path.relative_to(out).as_posix())


def table_context(title: str, note: str, table: pd.DataFrame, files: list[Path]) -> dict[str, Any]:
    """A table as the template wants it, and the files that hold it."""
    return {
        "files": files,
        "title": title,
        "note": note,
        "columns": list(table.columns),
        "rows": [list(map(show, row)) for row in table.itertuples(index=False)],
    }


def colour_class(colour: str) -> str:
    """Name the class of the style sheet that has a colour; the page allows no styles but the sheet's."""
    return f"c{colour.removeprefix('#')}"


def group_context(
    group: Group,
    findings: list[Finding],
    verdicts: list[Verdict],
    figures: list[Drawn],
    first: list[dict[str, Any]],
    tables: list[dict[str, Any]],
    strips: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything that one group of comparable runs shows; ``first`` are tables that come before all sentences."""
    for strip in strips:
        for prompt in strip["prompts"]:
            for row in prompt["rows"]:
                row["colour"] = colour_class(group.style(row["algorithm"]).colour)
    return {
        "name": group.name, "title": group.title, "findings": findings, "verdicts": verdicts, "first": first,
        "tables": tables,
        "notes": [*filter(None, [group.note]), *_gold_notes(group), *_reference_notes(group)], "strips": strips,
        "settings": json.dumps({k: v for k, v in group.settings.items() if k != "weights"}, ensure_ascii=False),
        "figures": [drawn for drawn in figures if drawn.proxy is None],
        "panels": {proxy: list(own) for proxy, own in groupby(figures, lambda drawn: drawn.proxy) if proxy is not None},
        "colours": {label: colour_class(group.style(label).colour) for label in group.appearing()},
    }  # fmt: skip


def _gold_notes(group: Group) -> list[str]:
    """What a reader must know of the golds: which is the truth, which are missing where."""
    notes = []
    if group.truth in group.golds():
        notes.append(
            f"{group.truth} is the true reward of the suite {group.settings['suite']}, shown beside every asked gold."
        )
    for proxy in group.proxies():
        if not group.golds(proxy):
            notes.append(
                f"Trained on {proxy}, no other reward was held out as gold, so no overoptimization can be seen."
            )
    for gold in group.golds():
        if gold in group.proxies():
            notes.append(f"{gold} is the proxy of some runs: for those it is not gold.")
        if missing := group.lacking(gold):
            folders = ", ".join(str(run.folder) for run in missing[:NAMED])
            folders += f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            notes.append(
                f"{gold} was not asked for, nor recorded, in {folders}: its curves and numbers are without these."
            )
    return notes


def _reference_notes(group: Group) -> list[str]:
    if group.reference is None:
        return []
    note = f"Thin lines are {len(group.reference.runs)} reference records of the repository with the same settings."
    mine, theirs = (part.settings["budget"] for part in (group, group.reference))
    if mine != theirs:
        note += f" Their budget is {theirs} and not {mine}: curves end where they end, numbers are compared where all have some."
    return [note, *other_parameters(group)]


def _digest(text: str) -> str:
    """A content-security policy's name for one inline script or style sheet."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _session_rows(runs: list[Run]) -> list[dict[str, str]]:
    return [
        {"folder": str(run.folder), "name": name, "change": values}
        for run in runs if len(run.sessions) > 1 for name, values in session_differences(run.sessions)
    ]  # fmt: skip


def render(groups: list[dict[str, Any]], runs: list[Run], notes: list[str]) -> str:
    """The page's HTML.

    Args:
        groups: what ``group_context`` gave for each.
        runs: all that were found.
        notes: what concerns the whole page.
    """
    environment = Environment(
        loader=PackageLoader("overopt_bench.report"), undefined=StrictUndefined, autoescape=True, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    states = [
        {"folder": str(run.folder), "state": run.state, "reason": run.reason, "sessions": len(run.sessions),
         "queries": f"{run.queries:.0f}"} for run in runs
    ]  # fmt: skip
    used = dict.fromkeys(name for group in groups for name in group["colours"].values())
    colours = "".join(f".{name} {{ --row: #{name.removeprefix('c')}; }}\n" for name in used)
    sheet = (TEMPLATES / "page.css").read_text(encoding="utf-8") + colours
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(sheet)}; img-src data: 'self' file:;"
        " base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html.j2").render(
        groups=groups, runs=states, sessions=_session_rows(runs), notes=notes, policy=policy, sheet=sheet,
        script=script, long=LONG,
    )  # fmt: skip
