"""One self-contained HTML page: verdicts, filmstrip, figures, tables, and the state of every run."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from overopt_bench.report.figures import STYLE, style
from overopt_bench.report.load import Group, Run
from overopt_bench.report.tables import show


def data_uri(path: Path) -> str:
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def table_context(title: str, note: str, table: pd.DataFrame) -> dict[str, Any]:
    """A table as the template wants it."""
    return {
        "title": title,
        "note": note,
        "columns": list(table.columns),
        "rows": [list(map(show, row)) for row in table.itertuples(index=False)],
    }


def group_context(
    group: Group,
    verdicts: list[Any],
    figures: list[tuple[str, Path]],
    tables: list[dict[str, Any]],
    strips: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything that one group of comparable runs shows."""
    settings = {k: v for k, v in group.settings.items() if k != "weights"}
    shown = [{"title": title, "src": data_uri(path)} for title, path in figures]
    labels = list(dict.fromkeys(label for proxy in group.proxies() for label in group.labels(proxy)))
    return {
        "name": group.name, "title": group.title, "gold": group.gold, "settings": json.dumps(settings),
        "verdicts": verdicts, "figures": shown,
        "tables": tables, "strips": json.dumps(strips).replace("</", "<\\/"), "has_strips": bool(strips),
        "colours": {label: style(label)[0] for label in labels},
        "strip_colours": json.dumps({**{k: v[0] for k, v in STYLE.items()}, **{label: style(label)[0] for label in labels}}),
    }  # fmt: skip


def render(groups: list[dict[str, Any]], runs: list[Run]) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("overopt_bench.report"), undefined=StrictUndefined, autoescape=select_autoescape(),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    states = [
        {"folder": str(run.folder), "state": run.state, "reason": run.reason,
         "queries": max((e["queries"] for e in run.events), default=0)} for run in runs
    ]  # fmt: skip
    return environment.get_template("page.html.j2").render(groups=groups, runs=states)
