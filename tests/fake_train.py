"""Training that takes no time, for tests of what commands hand to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from overopt_bench.config import RunConfig

RUN = ["run", "--algo", "climb", "--proxy", "darkness", "--suite", "tiny", "--device", "cpu"]
SWEEP = [
    "sweep",
    "--algo",
    "climb,slide",
    "--proxy",
    "darkness",
    "--seeds",
    "0-1",
    "--suite",
    "tiny",
    "--device",
    "cpu",
    "--jobs",
    "1",
]


class FakeTrain:
    """Stands for ``overopt_bench.training.loop``: notes what it was given and writes a complete run."""

    def __init__(self) -> None:
        self.calls: list[tuple[RunConfig, dict[str, Any]]] = []
        self.error: BaseException | None = None

    def run(self, config: RunConfig, **rest: Any) -> Path:
        self.calls.append((config, rest))
        if self.error is not None:
            raise self.error
        folder = config.folder(rest["out"])
        folder.mkdir(parents=True)
        recorded = {"config": config.model_dump(mode="json"), "config_hash": config.config_hash()}
        (folder / "config.json").write_text(json.dumps(recorded))
        (folder / "status.json").write_text(json.dumps({"state": "complete"}))
        return folder
