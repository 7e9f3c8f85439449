"""The heads that the published rewards put on their encoders."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from overopt_bench.encoders.clip import image_embeddings

if TYPE_CHECKING:
    from transformers import CLIPModel


class RegressionHead(nn.Module):
    """Five linear layers with dropout and no activation between them, an affine map from ``[B, D]`` to ``[B]``.

    The head of LAION's predictor and of ImageReward, under their key names. Sizes come from the state dict.
    """

    def __init__(self, inputs: int, hidden: Sequence[int] = (1024, 128, 64, 16)) -> None:
        super().__init__()
        sizes = [inputs, *hidden, 1]
        linear = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        dropouts = [nn.Dropout(0.2), nn.Dropout(0.2), nn.Dropout(0.1)]
        self.layers = nn.Sequential(
            linear[0], dropouts[0], linear[1], dropouts[1], linear[2], dropouts[2], linear[3], linear[4]
        )

    def forward(self, features: Tensor) -> Tensor:
        return torch.as_tensor(self.layers(features).squeeze(-1))


class AestheticPredictor(nn.Module):
    """The head on CLIP's unit embedding, from normalised pixels ``[B, 3, side, side]`` to scores ``[B]``."""

    def __init__(self, clip: CLIPModel, head: RegressionHead) -> None:
        super().__init__()
        self.clip, self.head = clip, head

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.as_tensor(self.head(image_embeddings(self.clip, pixels)))
