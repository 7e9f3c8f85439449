"""The networks of ``human``: those of each member, and the ensemble that a prompt is judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overopt_bench.encoders.devices import follow
from overopt_bench.rewards.human import Names


class _Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, inputs), nn.GroupNorm(8, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        # in place, which nothing's gradient minds: on a CPU new memory costs more than the arithmetic
        h = self.conv2(self.norm2(self.conv1(self.norm1(x).relu_())).relu_())
        return torch.as_tensor(h.add_(self.skip(x)))


class NamingNet(nn.Module):
    """A small residual network for 32 x 32 images ``[B, 3, 32, 32]`` in [0, 1]: name logits ``[B, names]``."""

    def __init__(self, names: int, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.Sequential(
            _Residual(width, width), nn.AvgPool2d(2), _Residual(width, 2 * width), nn.AvgPool2d(2),
            _Residual(2 * width, 4 * width), nn.AvgPool2d(2), _Residual(4 * width, 4 * width),
        )  # fmt: skip
        self.naming = nn.Linear(4 * width * 16, names)

    def forward(self, images: Tensor) -> Tensor:
        h = F.relu(self.stages(self.stem(images * 2 - 1)))  # [B, 4 width, 4, 4]
        return torch.as_tensor(self.naming(F.dropout(h.flatten(1), 0.3, self.training)))


class QualityNet(nn.Module):
    """A network that rates how well drawn images ``[B, 3, 32, 32]`` in [0, 1] are: a logit ``[B]``, from fine and coarse statistics."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.fine = _Residual(width, width)
        self.coarse = nn.Sequential(nn.AvgPool2d(2), _Residual(width, 2 * width), _Residual(2 * width, 2 * width))
        self.head = nn.Sequential(nn.Linear(9 * width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, images: Tensor) -> Tensor:
        fine = self.fine(self.stem(images * 2 - 1))
        coarse = self.coarse(fine)
        h = torch.cat(
            [stat for x in (F.relu(fine), F.relu(coarse)) for stat in (x.mean((2, 3)), x.std((2, 3)), x.amax((2, 3)))],
            1,
        )
        return torch.as_tensor(self.head(h).squeeze(1))


class Member(nn.Module):
    """One of the judge's members: a network that names and one that rates."""

    def __init__(self, names: int, width: int) -> None:
        super().__init__()
        self.name, self.quality = NamingNet(names, width), QualityNet(width)


class Judge(nn.Module):
    """The ensemble of members. It knows ``names``; one more class means "nothing recognisable"."""

    MEMBERS = 3

    def __init__(self, names: Sequence[str], width: int = 32) -> None:
        super().__init__()
        self.names = Names(names)
        self.members = nn.ModuleList(Member(len(names) + 1, width) for _ in range(self.MEMBERS))

    def name_of(self, prompt: str) -> int:
        """Find the name in a prompt, as ``Names.find`` does; its index.

        Raises:
            ValueError: where there is none, which ``Human.check_prompts`` says before.
        """
        if (found := self.names.find(prompt)) is None:
            raise ValueError(f"the judge knows no name in the prompt {prompt!r}")
        return found

    def parts(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Compute alignment and quality, each ``[B]`` in [0, 1], of images ``[B, 3, 32, 32]`` in [0, 1]."""
        target = torch.tensor([self.name_of(p) for p in prompts], device=images.device)
        images = images.contiguous(memory_format=torch.channels_last)
        follow(self, images)
        alignment, quality = [], []
        for member in self.members:
            assert isinstance(member, Member)
            logits = member.name(images)
            log_p = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
            alignment.append((1 + log_p / math.log(logits.shape[1])).clamp(0, 1))  # 0 at a uniform guess
            quality.append(member.quality(images).sigmoid())
        return torch.stack(alignment).mean(0), torch.stack(quality).mean(0)
