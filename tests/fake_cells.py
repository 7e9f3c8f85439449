"""A sweep whose runs end as they are told to, in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from overopt_bench.commands.grid import Cells
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import RunConfig, resolve
from overopt_bench.errors import RunError, UserError


@dataclass(frozen=True)
class FakeCells(Cells):
    """Runs that do what ``ends`` says, by index."""

    ends: tuple[str, ...] = ()

    def start(self, index: int) -> Path:
        (self.out / f"{index}-{os.getpid()}-{os.environ['OMP_NUM_THREADS']}").touch()
        print("about to", self.ends[index])
        match self.ends[index]:
            case "fail":
                raise RunError("the loss is not finite")
            case "refuse":
                raise UserError("no such card")
            case "break":
                raise ValueError("odd")
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "wait":
                time.sleep(100)
        return self.folder(index)


def fake_cells(out: Path, *ends: str) -> FakeCells:
    """A sweep of one run for each end, by seed."""
    base = {"algo": "base", "proxy": "aesthetic", "suite": "mini"}
    configs: tuple[RunConfig, ...] = tuple(resolve({**base, "seed": seed}) for seed in range(len(ends)))
    return FakeCells(configs, (Runtime(device="cpu"),) * len(ends), (), out, None, False, ends)
