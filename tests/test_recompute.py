"""Recomputation: a chain's passes once more as wholes and a transition's block by block, for less memory and equal numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.sizing.flops import _Meter

PROMPTS = ["tiger", "fox face", "tiger", "owl"]
T = 3


@pytest.fixture(scope="module")
def policy() -> DiffusionPolicy:
    return DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=T, guidance_scale=1.0, eta=1.0, lora_rank=2, lora_alpha=2, seed=0
    )


def chain(policy: DiffusionPolicy, checkpoint: bool, grad_from: int = 0) -> Tensor:
    noise = policy.draw_noise(len(PROMPTS), torch.Generator().manual_seed(0))
    return policy.rollout_from(noise, PROMPTS, grad_from=grad_from, checkpoint=checkpoint).images.sum()


def transition(policy: DiffusionPolicy, checkpoint: bool) -> Tensor:
    x = policy.draw_noise(len(PROMPTS), torch.Generator().manual_seed(1))[0]
    return policy.transition(x, torch.ones(len(PROMPTS), dtype=torch.long), PROMPTS, checkpoint).mean.square().sum()


def gradient(policy: DiffusionPolicy, loss: Tensor) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, policy.trainable())])


def calls(policy: DiffusionPolicy, work: Callable[[], Any]) -> Counter[str]:
    """How often the U-Net, and one block in it, were run while ``work`` was done."""
    seen: Counter[str] = Counter()
    parts = {"passes": policy.unet, "blocks": policy.unet.up_blocks[0].resnets[0]}
    hooks = [part.register_forward_pre_hook(lambda *_, name=name: seen.update([name])) for name, part in parts.items()]
    work()
    for hook in hooks:
        hook.remove()
    return seen


def peak(work: Callable[[], Any]) -> int:
    """The most bytes of tensors made by ``work`` that were alive at once."""
    with _Meter() as meter:
        work()
    return meter.peak


def test_a_chain_repeats_its_passes_and_no_block_twice(policy: DiffusionPolicy) -> None:
    for grad_from in (0, 1):
        again = calls(policy, lambda first=grad_from: gradient(policy, chain(policy, True, first)))
        assert again == {"passes": T + T - grad_from, "blocks": T + T - grad_from}
    assert calls(policy, lambda: gradient(policy, chain(policy, False))) == {"passes": T, "blocks": T}
    assert calls(policy, lambda: gradient(policy, transition(policy, True))) == {"passes": 1, "blocks": 2}
    assert calls(policy, lambda: gradient(policy, transition(policy, False))) == {"passes": 1, "blocks": 1}


def test_it_takes_less_memory(policy: DiffusionPolicy) -> None:
    stored, again = (peak(lambda on=on: gradient(policy, chain(policy, on))) for on in (False, True))
    assert again < 0.6 * stored  # one pass of three, and the decoder block by block
    stored, again = (peak(lambda on=on: gradient(policy, transition(policy, on))) for on in (False, True))
    assert again < 0.6 * stored


def test_the_gradient_is_the_same_in_any_order(policy: DiffusionPolicy) -> None:
    """Also where passes of the other kind are made before the backward pass, which repeats each as it was made."""
    plain = gradient(policy, chain(policy, False)), gradient(policy, transition(policy, False))
    first, second = chain(policy, True), transition(policy, True)
    third = transition(policy, False)
    seen = {
        "chain": (gradient(policy, first), plain[0]),
        "transition": (gradient(policy, second), plain[1]),
        "stored": (gradient(policy, third), plain[1]),
    }
    for name, (own, expected) in seen.items():
        assert (own - expected).norm() <= 1e-5 * expected.norm(), name
