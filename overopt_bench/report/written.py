"""What a report wrote into its folder, listed there, so that the next one leaves nothing of it behind."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path

from overopt_bench.files import atomic

LIST = "files.txt"


def replace_listed(out: Path, files: Iterable[Path]) -> None:
    """Removes what the folder's list names and the new report did not write, then lists what it wrote.

    Only listed files are ever removed, and none outside of the folder whatever the list says, so that a report can be
    made in a folder that holds other things too.

    Args:
        out: the report's folder.
        files: everything that the new report wrote below it, but its page.
    """
    written = {file.relative_to(out).as_posix() for file in files}
    listed = out / LIST
    before = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    for name in sorted(set(before) - written):
        file = out / name
        if file.is_file() and file.parent.resolve().is_relative_to(out.resolve()):
            file.unlink()
            for folder in takewhile(lambda above: above != out and not any(above.iterdir()), file.parents):
                folder.rmdir()
    with atomic(listed) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in sorted(written)), encoding="utf-8", newline="\n")
