"""Where and how fast a run is computed: everything that changes time and memory but not the experiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# implementations of attention, and the classes of diffusers that they are
ATTENTION = {"sdpa": "AttnProcessor2_0", "eager": "AttnProcessor", "xformers": "XFormersAttnProcessor"}


@dataclass(frozen=True)
class Runtime:
    """Attributes:
    device: ``cpu``, ``cuda`` or ``cuda:N``.
    weights: a folder to read weights from instead of the Hub and its cache.
    micro_batch: samples per network pass; None takes what fits.
    checkpoint: recompute activations in the backward pass, which takes less memory and more time; None does so where
        the algorithm's authors do and the suite's networks are not small.
    compile: run the U-Net through ``torch.compile``.
    attention: sdpa (torch's fused kernels), eager or xformers; None leaves diffusers' choice.
    """

    device: str = "cpu"
    weights: Path | None = None
    micro_batch: int | None = None
    checkpoint: bool | None = None
    compile: bool = False
    attention: str | None = None

    def words(self) -> Iterable[str]:
        """The options of the command line that say the same."""
        yield from ("--device", self.device)
        for name, value in (
            ("weights", self.weights),
            ("micro-batch", self.micro_batch),
            ("attention", self.attention),
        ):
            if value is not None:
                yield from (f"--{name}", str(value))
        if self.checkpoint is not None:
            yield "--checkpoint" if self.checkpoint else "--no-checkpoint"
        if self.compile:
            yield "--compile"
