"""What a report wrote into its folder, listed there, so that the next one leaves nothing of it behind."""

from __future__ import annotations

from collections.abc import Iterable, Set
from itertools import takewhile
from pathlib import Path

from overopt_bench.errors import UserError
from overopt_bench.files import atomic

LIST = "files.txt"
HEAD = "# what a report wrote here, which the next one in this folder takes away or writes again"


def read_list(out: Path) -> set[str]:
    """The names of what the last report wrote into a folder, relative to it; none where there was none.

    Raises:
        UserError: where a file of the list's name is somebody else's. What it names would be taken away.
    """
    path = out / LIST
    if not path.is_file():
        return set()
    head, *names = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if head != HEAD:
        raise UserError(f"{path} exists and is not the list of a report; use another --out")
    return {*names}


def replace_listed(out: Path, before: Set[str], files: Iterable[Path]) -> None:
    """Removes what the last report wrote and the new one did not, then lists what the new one wrote.

    Only listed files are ever removed, and none outside of the folder whatever the list says, so that a report can be
    made in a folder that holds other things too.

    Args:
        out: the report's folder.
        before: what ``read_list`` gave.
        files: everything that the new report wrote below it, but its page.
    """
    written = {file.relative_to(out).as_posix() for file in files}
    for name in sorted(before - written):
        file = out / name
        if file.is_file() and file.parent.resolve().is_relative_to(out.resolve()):
            file.unlink()
            for folder in takewhile(lambda above: above != out and not any(above.iterdir()), file.parents):
                folder.rmdir()
    with atomic(out / LIST) as temporary:
        temporary.write_text("\n".join([HEAD, *sorted(written), ""]), encoding="utf-8", newline="\n")
