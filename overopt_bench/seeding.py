"""Named random generators: one per purpose, so that drawing more for one changes nothing for another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import Generator, Tensor

PURPOSES = ("sampling", "prompts", "batch", "critic")


def stable_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends only on ``parts``; the same on every machine and Python version."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Generators(dict[str, "Generator"]):
    """A CPU generator for each of ``PURPOSES``, and torch's global one (dropout), all from one seed."""

    def __init__(self, seed: int) -> None:
        super().__init__({name: torch.Generator().manual_seed(stable_seed(seed, name)) for name in PURPOSES})
        torch.manual_seed(stable_seed(seed, "global"))

    def state_dict(self) -> dict[str, Tensor]:
        """The states, the global one included."""
        return {"global": torch.get_rng_state(), **{name: g.get_state() for name, g in self.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore ``state_dict``."""
        torch.set_rng_state(state["global"])
        for name, g in self.items():
            g.set_state(state[name])
