"""What tests share across the workers of pytest-xdist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

Once = Callable[[str, Callable[[Path], object]], Path]  # the fixture ``once``: a name and what fills the folder


def made_once(shared: Path, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of a name, which the first to ask fills and nobody may write to afterwards."""
    folder = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            make(shared / f"{name}.part")
            (shared / f"{name}.part").rename(folder)
    return folder
