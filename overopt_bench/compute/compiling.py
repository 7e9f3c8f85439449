"""``torch.compile`` with code that outlives the process, so that one run of a sweep pays for it and the others do not."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

PLACE = "TORCHINDUCTOR_CACHE_DIR"  # torch's own variable; a user's value stands


def compiled(module: Any) -> Any:
    """Compile a network, or take its code from the cache where this machine has compiled it before.

    Left to itself torch keeps the code in the temporary folder, which a restart of the machine empties and each job of a
    cluster may have anew; here it is kept among the user's caches, unless ``TORCHINDUCTOR_CACHE_DIR`` names a folder.
    """
    if not _named_by_the_user(os.environ.get(PLACE)):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overopt-bench" / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:  # a home that cannot be written; the temporary folder still serves
            return torch.compile(module)
        os.environ[PLACE] = str(folder)
    return torch.compile(module)


def _named_by_the_user(place: str | None) -> bool:
    """Tell a user's folder from the one that torch writes into the variable itself once its compiler is imported.

    diffusers and peft import the compiler, so that by now the variable names ``torchinductor_USER`` among the temporary
    files even where nobody has set it.
    """
    if not place:
        return False
    return not (Path(place).name.startswith("torchinductor_") and Path(place).parent == Path(tempfile.gettempdir()))
