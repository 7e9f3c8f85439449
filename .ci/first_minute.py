"""Looks into the page that the README's first block ends with: is the run there, and what happened to the asked gold?

``python .ci/first_minute.py [RUN PAGE]``: the folder of the one run and the report's HTML, which are where the README's
commands put them if they are left out. Each thing that a newcomer would miss is one line on stderr, and the exit status
is 1.
"""

from __future__ import annotations

import base64
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from readme import README, commands

RUN, PAGE = Path("results/mini/aesthetic/tdpo_r/seed0"), Path("report/index.html")
FIGURE = "Proxy and gold against queries"


class Page(HTMLParser):
    """Reads what the page shows.

    Attributes:
        text: Everything that is written outside of scripts and styles.
        rows: The cells of every row of every table, headings included.
        figures: The picture of every image with a description, by that description.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.rows: list[list[str]] = []
        self.figures: dict[str, bytes] = {}
        self._hidden = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "img":
            self.figures[given.get("alt", "")] = base64.b64decode(given.get("src", "").partition("base64,")[2])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        if tag == "tr":
            self.rows.append([])  # what comes after a row belongs to none

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def missing(run: Path, page: Path) -> list[str]:
    """Compares the page with the record that it was drawn from.

    Args:
        run: The run's folder.
        page: The report's HTML.

    Returns:
        What a reader would miss, a sentence each; empty where all is there.
    """
    shown = Page(page.read_text(encoding="utf-8"))
    config: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))["config"]
    events = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    evals = [event for event in events if event["event"] == "eval"]
    found = []
    if not any(row and Path(row[0]) == run and "complete" in row for row in shown.rows):
        found.append(f"no row says that the run {run} is complete")
    if not shown.figures.get(FIGURE, b"").startswith(b"\x89PNG"):
        found.append(f"no figure {FIGURE!r}")
    for gold in re.findall(r"--gold (\S+)", commands("first-block", README.read_text(encoding="utf-8"))):
        if gold not in config["gold"]:
            found.append(f"the run did not record the asked gold {gold}")
            continue
        ends = [f"{evals[k][f'train/{gold}/mean']:.3f}" for k in (0, -1)]
        if not any({gold, config["algo"], *ends} <= set(row) for row in shown.rows):
            found.append(f"no row has the asked gold {gold} at its start and end, {' and '.join(ends)}")
        if not re.search(rf"\b{re.escape(gold)}\b.* {ends[0]}.* {ends[1]}", shown.text):
            found.append(f"no sentence says that the asked gold {gold} went from {ends[0]} to {ends[1]}")
    if not re.search(r"\btruth\b", shown.text):
        found.append("nothing says which reward is the suite's truth")
    return found


if __name__ == "__main__":
    problems = missing(*map(Path, sys.argv[1:])) if sys.argv[1:] else missing(RUN, PAGE)
    sys.exit("\n".join(f"error: {problem}" for problem in problems) or None)
