"""Where and how fast a run is computed: everything that changes time and memory but not the experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from overopt_bench.options import option

Attention = Literal["sdpa", "eager", "xformers"]
# implementations of attention, and the classes of diffusers that they are
ATTENTION = {"sdpa": "AttnProcessor2_0", "eager": "AttnProcessor", "xformers": "XFormersAttnProcessor"}


class Machine(BaseModel):
    """Where to compute, and where weights are read from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = option("Where to compute: cpu, cuda or cuda:N.", "cpu", source="cuda where there is one")
    weights: Path | None = option(
        "Read weights from DIR/<repository's name>/ instead of the Hub and its cache.", None, metavar="DIR"
    )


class Runtime(Machine):
    """A machine, and how networks are run on it: every knob of speed and memory, none of which changes a result."""

    micro_batch: int | None = option(
        "Samples per network pass; changes memory and speed, no result.", None, source="what fits", ge=1
    )
    checkpoint: bool | None = option(
        "Recompute activations in the backward pass: less memory, more time, the same result.", None,
        source="as the algorithm's authors do, not in a small suite",
    )  # fmt: skip
    compile: bool = option("Run the U-Net through torch.compile.", False)
    attention: Attention | None = option("Implementation of attention.", None, source="diffusers' choice")
