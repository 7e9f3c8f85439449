"""Prompts as a pipeline's U-Net sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Embeddings ``[B, L, D]`` and, for XL, ``added``: pooled embeddings ``[B, P]`` and sizes ``[B, 6]`` in pixels."""

    embeds: Tensor
    added: dict[str, Tensor] | None = None

    def __getitem__(self, rows: Tensor) -> Conditioning:
        return Conditioning(self.embeds[rows], self.added and {k: v[rows] for k, v in self.added.items()})

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """One after the other along B."""
        added = None if parts[0].added is None else {
            key: torch.cat([p.added[key] for p in parts if p.added]) for key in parts[0].added
        }  # fmt: skip
        return Conditioning(torch.cat([p.embeds for p in parts]), added)


class PromptEncoder:
    """The text side of a ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``; each prompt is encoded once.

    Prompts are encoded one by one, so that no embedding depends on what it was encoded with. Cut at the encoder's
    length (77 tokens) by diffusers, which warns.
    """

    def __init__(self, pipeline: Any, device: torch.device, image_size: int) -> None:
        self.pipeline, self.device, self.image_size = pipeline, device, image_size
        self.is_xl = hasattr(pipeline, "text_encoder_2")
        self._known: dict[str, Conditioning] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._known:
                self._known[prompt] = self._encode(prompt)
        return Conditioning.cat([self._known[prompt] for prompt in prompts])

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
