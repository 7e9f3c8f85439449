"""``human``: the truth of the mini suite, a judge that stands for people.

Three members that share nothing with the suite's CLIP: convolutional networks, other initialisations, other
splits of the drawings. In each, one network names what it sees (or "nothing") and another rates how well drawn
it is; the score is half the clipped log-probability of the prompted name and half the quality.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import Self

from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.types import Resources, Reward
from overopt_bench.weights import digest, load_strictly, read_json, read_state, refusing

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.rewards.judge import Judge


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
        from overopt_bench.rewards.judge import Judge

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
