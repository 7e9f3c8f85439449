"""The weights of a U-Net's adapter: what is trained, frozen copies of it, and which of them the network wears."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PREFIX = "copies."  # of a copy's tensors in a checkpoint: copies.NAME.PARAMETER

Weights = tuple[nn.Parameter, ...]


class Copies:
    """An adapter's parameters and named frozen copies of them, one of which the network wears at a time.

    A copy is a set of parameters of its own, which takes the place of the trained ones in the modules. So a graph that
    was made under one model stays that model's, whatever the network wears when the graph is differentiated.

    Args:
        unet: a U-Net with peft's adapter; its parameters that require a gradient are the adapter's.

    Attributes:
        current: the trained parameters.
        worn: the parameters in the network's modules now; None where the adapter is off.
    """

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self._names = [name for name, p in unet.named_parameters() if p.requires_grad]
        self._places = [
            (module, name)
            for module in unet.modules()
            for name, p in module.named_parameters(recurse=False)
            if p.requires_grad
        ]
        self.current: Weights = tuple(getattr(module, name) for module, name in self._places)
        self.worn: Weights | None = self.current
        self._copies: dict[str, Weights] = {}

    def keep(self, name: str) -> None:
        """Keep a copy of the trained parameters as they are now, in place of an earlier one of that name.

        Raises:
            ValueError: for a name that is not made of letters, digits and underscores.
        """
        if not name.isidentifier():
            raise ValueError(f"a copy's name is made of letters, digits and underscores, not {name!r}")
        self._copies[name] = _frozen(self.current)

    def __getitem__(self, name: str) -> Weights:
        """The copy that was kept under a name.

        Raises:
            LookupError: where there is none.
        """
        if name not in self._copies:
            there = ", ".join(sorted(self._copies)) or f"none; call keep({name!r}) first"
            raise LookupError(f"no copy of the adapter is kept as {name!r}; there are: {there}")
        return self._copies[name]

    @torch.no_grad()
    def blend(self, name: str, decay: float) -> None:
        """Move a copy towards the trained parameters: copy <- decay * copy + (1 - decay) * current.

        Raises:
            LookupError: where no such copy was kept.
            ValueError: for a decay outside [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"the decay of a copy must be in [0, 1], not {decay}")
        for copy, current in zip(self[name], self.current, strict=True):
            copy.lerp_(current, 1 - decay)  # exact at both ends

    def idle(self) -> bool:
        """Say whether the trained parameters have no effect, as before the first update: what they add is times 0."""
        ends = [p for name, p in zip(self._names, self.current, strict=True) if "lora_B" in name]
        return bool(ends) and not any(bool(p.any()) for p in ends)

    @contextmanager
    def wearing(self, weights: Weights | None) -> Iterator[None]:
        """Inside: the network wears these parameters, or none. Restored on the way out, also after an error."""
        before = self.worn
        self._wear(weights)
        try:
            yield
        finally:
            self._wear(before)

    def _wear(self, weights: Weights | None) -> None:
        if weights is self.worn:
            return
        if (weights is None) != (self.worn is None):
            self._install(self.current)  # for peft's switch sets requires_grad of what it finds
            self.unet.disable_adapters() if weights is None else self.unet.enable_adapters()
        if weights is not None:
            self._install(weights)
        self.worn = weights

    def _install(self, weights: Weights) -> None:
        for (module, name), parameter in zip(self._places, weights, strict=True):
            setattr(module, name, parameter)

    def state_dict(self) -> dict[str, Tensor]:
        """The copies' tensors by ``copies.NAME.PARAMETER``; none where nothing was kept."""
        return {
            f"{PREFIX}{name}.{parameter}": value.data
            for name, weights in self._copies.items()
            for parameter, value in zip(self._names, weights, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Replace all copies by those of a ``state_dict``, which may have none; return what else it holds."""
        kept = [key.removeprefix(PREFIX).split(".", 1)[0] for key in state if key.startswith(PREFIX)]
        self._copies = {
            name: _frozen([state[f"{PREFIX}{name}.{parameter}"] for parameter in self._names], self.current[0].device)
            for name in dict.fromkeys(kept)
        }
        return {key: value for key, value in state.items() if not key.startswith(PREFIX)}


def _frozen(weights: Sequence[Tensor], device: torch.device | None = None) -> Weights:
    copies = (value.detach().to(device or value.device, torch.float32, copy=True) for value in weights)
    return tuple(nn.Parameter(value, requires_grad=False) for value in copies)
