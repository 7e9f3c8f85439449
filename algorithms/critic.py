"""TDPO's temporal critic: an MLP on frozen image features of the noisy latents themselves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor, nn

DROPOUTS = (0.2, 0.2, 0.1)  # after the first three hidden layers [TDPO's code]


class TemporalCritic(nn.Module):
    """The critic V(x_i): features ``[B, D]`` to values ``[B]``. It sees neither the prompt nor the timestep.

    The published critic has no activation function, so it is a deep *linear* model, with all weights drawn
    from N(0, (1/(D+1))^2) and zero biases. ``activation="relu"`` is the critic that talk of dormant neurons
    usually means.

    Args:
        features: D.
        hidden: widths of the hidden layers.
        activation: what stands between layers.
        dropout: whether ``DROPOUTS`` hold while training.
        generator: of the initial weights and of dropout; torch's global one on a GPU is not part of a checkpoint.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        activation: Literal["none", "relu"],
        dropout: bool,
        generator: Generator,
    ) -> None:
        super().__init__()
        sizes = [features, *hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activation, self.dropout, self.generator = activation, dropout, generator
        self.std = 1 / (features + 1)
        for layer in self.linear_layers():
            layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * self.std
            nn.init.zeros_(layer.bias)

    def linear_layers(self) -> list[nn.Linear]:
        """Return all layers in order, the output layer last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, features: Tensor) -> Tensor:
        h = features
        hidden = self.linear_layers()[:-1]
        for k, layer in enumerate(hidden):
            h = layer(h).relu() if self.activation == "relu" else layer(h)
            if self.dropout and self.training and k < len(DROPOUTS):
                kept = torch.rand(h.shape, generator=self.generator) >= DROPOUTS[k]
                h = h * kept.to(h) / (1 - DROPOUTS[k])
        return torch.as_tensor(self.linear_layers()[-1](h).squeeze(-1))

    @torch.no_grad()
    def probe(self, features: Tensor) -> list[Tensor]:
        """Return the ReLU of each hidden layer's output ``[P, H_l]`` in float32, without dropout.

        The ReLU is the probe's own where the critic has none, as in TDPO's code.
        """
        out, h = [], features.float()
        for layer in self.linear_layers()[:-1]:
            h = layer(h)
            out.append(h.relu())
            if self.activation == "relu":
                h = out[-1]
        return out
