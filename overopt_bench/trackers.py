"""Optional live trackers, through accelerate. ``metrics.jsonl`` is the record; nothing here is needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overopt_bench.config import RunConfig
from overopt_bench.errors import UserError

KINDS = ("tensorboard", "wandb")


class Tracker:
    """Logs scalars to TensorBoard or Weights & Biases; does nothing for None.

    Raises:
        UserError: for an unknown kind, or one whose package is not installed.
    """

    def __init__(self, kind: str | None, config: RunConfig, folder: Path) -> None:
        self._accelerator = None
        if kind is None:
            return
        if kind not in KINDS:
            raise UserError(f"--tracker {kind}: allowed are {', '.join(KINDS)}")
        from accelerate import Accelerator
        from accelerate.tracking import is_tensorboard_available, is_wandb_available

        if not {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}[kind]():
            raise UserError(f"--tracker {kind}: the package is not installed; pip install {kind}")
        self._accelerator = Accelerator(log_with=kind, project_dir=folder, cpu=True)
        flat = {k: v if isinstance(v, (int, float, str)) else str(v) for k, v in config.model_dump().items()}
        self._accelerator.init_trackers("overopt-bench", config=flat)

    def log(self, row: Mapping[str, Any], queries: int) -> None:
        """Scalars of one record, at this many queries."""
        if self._accelerator is not None:
            self._accelerator.log({k: v for k, v in row.items() if isinstance(v, (int, float))}, step=queries)

    def close(self) -> None:
        """Flush."""
        if self._accelerator is not None:
            self._accelerator.end_training()
