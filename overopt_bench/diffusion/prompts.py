"""Prompts as a pipeline's U-Net sees them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# bytes of embeddings that are kept: about 1,100 prompts of Stable Diffusion 1 in float32 and 800 of XL in half precision,
# more than an epoch of any algorithm draws, and less than a hundredth of a card
KEPT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Conditioning:
    """Embeddings ``[B, L, D]`` and, for XL, ``added``: pooled embeddings ``[B, P]`` and sizes ``[B, 6]`` in pixels."""

    embeds: Tensor
    added: dict[str, Tensor] | None = None

    def __getitem__(self, rows: Tensor) -> Conditioning:
        return Conditioning(self.embeds[rows], self.added and {k: v[rows] for k, v in self.added.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in (self.embeds, *(self.added or {}).values()))

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One after the other along B."""
        added = None if parts[0].added is None else {
            key: torch.cat([p.added[key] for p in parts if p.added]) for key in parts[0].added
        }  # fmt: skip
        return Conditioning(torch.cat([p.embeds for p in parts]), added)


class PromptEncoder:
    """The text side of a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.

    Prompts are encoded one by one, so that no embedding depends on what it was encoded with. Cut at the encoder's
    length (77 tokens) by diffusers, which warns. The embeddings that were used last are kept, up to ``KEPT_BYTES``.
    """

    def __init__(self, pipeline: Any, device: torch.device, image_size: int) -> None:
        self.pipeline, self.device, self.image_size = pipeline, device, image_size
        self.is_xl = hasattr(pipeline, "text_encoder_2")
        self._known: OrderedDict[str, Conditioning] = OrderedDict()  # the one used last stands last
        self._bytes = 0

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        found = {prompt: self._look_up(prompt) for prompt in dict.fromkeys(prompts)}
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._known.popitem(last=False)[1].nbytes
        return Conditioning.cat([found[prompt] for prompt in prompts])

    def _look_up(self, prompt: str) -> Conditioning:
        if prompt in self._known:
            self._known.move_to_end(prompt)
        else:
            self._known[prompt] = self._encode(prompt)
            self._bytes += self._known[prompt].nbytes
        return self._known[prompt]

    @torch.no_grad()
    def unconditional(self, n: int) -> Conditioning:
        """What guidance contrasts with: the empty prompt, or zeros where an XL pipeline says so."""
        empty = self([""])
        if self.is_xl and self.pipeline.config.force_zeros_for_empty_prompt:
            assert empty.added is not None
            text = torch.zeros_like(empty.added["text_embeds"])
            empty = Conditioning(torch.zeros_like(empty.embeds), {**empty.added, "text_embeds": text})
        return empty[torch.zeros(n, dtype=torch.long, device=self.device)]

    def _encode(self, prompt: str) -> Conditioning:
        options = {"device": self.device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        if not self.is_xl:
            return Conditioning(self.pipeline.encode_prompt([prompt], **options)[0])
        embeds, _, pooled, _ = self.pipeline.encode_prompt([prompt], **options)
        side = self.image_size
        sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=embeds.dtype, device=self.device)
        return Conditioning(embeds, {"text_embeds": pooled, "time_ids": sizes})
