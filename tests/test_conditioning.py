"""Prompt embeddings: bounded, and the same however often a prompt is encoded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from overopt_bench.diffusion import prompts as conditioning
from overopt_bench.diffusion.prompts import PromptEncoder
from overopt_bench.registry import get_suite


class Counting:
    """A pipeline that counts what is encoded; an embedding takes 64 bytes."""

    def __init__(self) -> None:
        self.encoded: list[str] = []

    def encode_prompt(self, prompts: list[str], **_: Any) -> tuple[torch.Tensor, ...]:
        self.encoded += prompts
        return (torch.full((1, 2, 8), float(len(self.encoded))),)


def test_what_was_used_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "KEPT_BYTES", 64 * 3)
    pipeline = Counting()
    encode = PromptEncoder(pipeline, torch.device("cpu"), 32)
    encode(["a", "b", "c"])
    encode(["a"])
    encode(["d"])  # b is forgotten
    encode(["a", "c", "d"])
    assert pipeline.encoded == ["a", "b", "c", "d"]
    encode(["b"])
    assert pipeline.encoded == ["a", "b", "c", "d", "b"] and encode._bytes == 64 * 3


def test_a_batch_may_be_larger_than_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditioning, "KEPT_BYTES", 64 * 3)
    pipeline = Counting()
    embeds = PromptEncoder(pipeline, torch.device("cpu"), 32)(list("abcdefab")).embeds
    assert pipeline.encoded == list("abcdef")  # each once
    assert embeds[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 1, 2]


def test_embeddings_do_not_depend_on_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = get_suite("mini").pipeline()
    prompts = ["fox face", "owl", "", "dog face", "fox face"]
    kept = PromptEncoder(pipeline, torch.device("cpu"), 32)(prompts).embeds
    monkeypatch.setattr(conditioning, "KEPT_BYTES", 0)
    forgetful = PromptEncoder(pipeline, torch.device("cpu"), 32)
    assert torch.equal(torch.cat([forgetful([prompt]).embeds for prompt in prompts]), kept)
    assert not forgetful._known
