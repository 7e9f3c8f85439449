"""``human``: the truth of the mini suite, a judge that stands for people.

Three members that share nothing with the suite's CLIP: convolutional networks, other initialisations, other
splits of the drawings. In each, one network names what it sees (or "nothing") and another rates how well drawn
it is; the score is half the clipped log-probability of the prompted name and half the quality.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from overopt_bench.encoders.devices import follow
from overopt_bench.errors import UserError
from overopt_bench.registry import register_reward
from overopt_bench.types import Resources, Reward
from overopt_bench.weights import digest, load_strictly, read_json, read_state, refusing


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


class Names:
    """The names that a judge knows, and which of them a prompt holds."""

    def __init__(self, names: Sequence[str]) -> None:
        self.index = {name: k for k, name in enumerate(names)}
        self._longest = sorted(self.index, key=len, reverse=True)

    def find(self, prompt: str) -> int | None:
        """Find the longest name that stands in the prompt as whole words, with the same capitals before any others; its index.

        The base model's tokenizer knows no case, so "Fox face" draws what "fox face" draws.
        """
        lower = prompt.lower()
        here = [name for name in self._longest if name.lower() in lower]  # most are not, and patterns are slow
        for flags in (0, re.IGNORECASE):
            for name in here:
                if re.search(rf"\b{re.escape(name)}\b", prompt, flags):
                    return self.index[name]
        return None

    def nearest(self, prompt: str) -> str:
        """Give the name most like a prompt, or the first one where none is like it."""
        near = difflib.get_close_matches(prompt.lower(), self.index, n=1, cutoff=0.3)
        return near[0] if near else next(iter(self.index))


def known_names(resources: Resources) -> list[str]:
    """Read the names that the mini suite's base model was trained on and that the judge knows."""
    return list(read_json(resources.asset("prompts.json"))["names"])


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


@register_reward(suite="mini")
class Human(Reward):
    """The synthetic judge: (alignment + quality) / 2 in [0, 1]; about 0.9 on real emoji."""

    name = "human"
    differentiable = True

    def __init__(self, judge: Judge, digest: str | None = None) -> None:
        self.judge, self._digest = judge, digest

    @classmethod
    def check_prompts(cls, prompts: Sequence[str], resources: Resources) -> None:
        names = Names(known_names(resources))
        if unknown := [prompt for prompt in prompts if names.find(prompt) is None]:
            others = f" nor in {len(unknown) - 1} others" if len(unknown) > 1 else ""
            raise UserError(
                f"the reward human cannot judge every prompt: the judge knows no name in the prompt {unknown[0]!r}{others};"
                f" did you mean {names.nearest(unknown[0])!r}? It knows the {len(names.index)} names that mini's base model"
                " was trained on, alone or within a prompt"
            )

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.asset("rewards/human.safetensors")
        state = {k: v.float() for k, v in read_state(path).items()}
        with refusing(path, "the judge's weights"):
            judge = Judge(known_names(resources), width=len(state["members.0.name.stem.weight"]))
        load_strictly(judge, state, path)
        judge = judge.to(memory_format=torch.channels_last)  # half the time on a CPU
        return cls(judge.eval().requires_grad_(False), digest(path))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        alignment, quality = self.judge.parts(images, prompts)
        return (alignment + quality) / 2

    def weights_hash(self) -> str | None:
        return self._digest
