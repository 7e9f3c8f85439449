"""Where runs lie: the folders of runs below a folder, and which of those in ``results`` are the user's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

RESULTS = Path("results")
COMMITTED = tuple(RESULTS / name for name in ("reference", "instrument", "search"))  # the repository's own records


def run_folders(top: Path, own: bool) -> Iterator[Path]:
    """Walk once through the folders below ``top``, where ``own`` through all but the repository's records.

    Other software writes config.json too: a run has metrics or a status beside it.
    """
    skipped = COMMITTED if own else ()
    for name, folders, files in os.walk(top):
        folder = Path(name)
        folders[:] = [below for below in folders if folder / below not in skipped]
        if "metrics.jsonl" in files or {"config.json", "status.json"} <= {*files}:
            yield folder
