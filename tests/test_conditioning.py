"""Prompt embeddings: bounded, and the same however often a prompt is encoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from overopt_bench.diffusion import prompts as conditioning
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.diffusion.prompts import Conditioning, PromptEncoder
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


def test_prompts_are_encoded_once_for_a_whole_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """With guidance and the base model's passes too, and once for each micro-batch."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=3, guidance_scale=2.0, eta=1.0, lora_rank=1, lora_alpha=1, seed=0
    )
    policy.micro_batch = 2
    encoded: list[list[str]] = []
    encode = PromptEncoder.__call__

    def counted(self: PromptEncoder, prompts: Sequence[str]) -> Conditioning:
        encoded.append(list(prompts))
        return encode(self, prompts)

    monkeypatch.setattr(PromptEncoder, "__call__", counted)
    noise = torch.randn((4, 3, *policy.latent_shape), generator=torch.Generator().manual_seed(0))
    policy.sample(noise, ["fox", "owl", "hen"], with_kl=True)
    assert encoded == [["fox", "owl"], [""], ["hen"], [""]]
