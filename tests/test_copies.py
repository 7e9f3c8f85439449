"""Kept copies of the adapter, and whose weights a graph is made of."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite

PROMPTS = ["penguin", "fox"]
TIMESTEPS = torch.tensor([700, 30])


def make(runtime: Runtime | None = None) -> DiffusionPolicy:
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=2, guidance_scale=1.5, eta=1.0, lora_rank=2, lora_alpha=2, seed=0,
        runtime=runtime,
    )  # fmt: skip
    change(policy, 1)
    return policy


@torch.no_grad()
def change(policy: DiffusionPolicy, seed: int) -> None:
    """What training does to the weights."""
    g = torch.Generator().manual_seed(seed)
    for p in policy.trainable():
        p += 0.1 * torch.randn(p.shape, generator=g)


def latents(policy: DiffusionPolicy, seed: int = 0) -> Tensor:
    return torch.randn((2, *policy.latent_shape), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def output(policy: DiffusionPolicy) -> Tensor:
    return policy.predict(latents(policy), TIMESTEPS, PROMPTS).noise


def test_training_leaves_a_copy_alone() -> None:
    policy = make()
    parameters, before = policy.trainable(), output(policy)
    policy.keep("old")
    with policy.using("old"):
        assert torch.equal(output(policy), before)
        inside = policy.predict(latents(policy), TIMESTEPS, PROMPTS).noise
    assert not inside.requires_grad  # a frozen copy has no gradient
    assert [id(p) for p in policy.trainable()] == [id(p) for p in parameters]
    change(policy, 2)
    after = output(policy)
    assert (after - before).abs().max() > 1e-3
    with policy.using("old"):
        assert torch.equal(output(policy), before)
    assert torch.equal(output(policy), after)
    policy.keep("old")  # again: the copy is the newer one
    with policy.using("old"):
        assert torch.equal(output(policy), after)


def test_a_copy_follows_as_far_as_it_is_told() -> None:
    policy = make()
    policy.keep("old")
    start = [p.detach().clone() for p in policy.trainable()]
    change(policy, 2)
    for decay in (1.0, 0.75, 0.0):
        policy.blend("old", decay)
        expected = [decay * a + (1 - decay) * p for a, p in zip(start, policy.trainable(), strict=True)]
        for own, truth in zip(policy.copies["old"], expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-6 if 0 < decay < 1 else 0, atol=1e-7 if 0 < decay < 1 else 0)
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], not 1.5"):
        policy.blend("old", 1.5)


def test_an_unknown_copy_is_refused_with_what_there_is() -> None:
    policy = make()
    with pytest.raises(LookupError, match=r"no copy .* 'old'; there are: none; call keep\('old'\) first"):
        policy.using("old")
    policy.keep("old")
    policy.keep("average")
    with pytest.raises(LookupError, match=r"no copy .* 'odl'; there are: average, old"):
        policy.blend("odl", 0.5)
    with pytest.raises(ValueError, match=r"letters, digits and underscores, not 'a\.b'"):
        policy.keep("a.b")


def test_contexts_nest_and_are_left_by_errors() -> None:
    policy = make()
    policy.keep("old")
    old = output(policy)
    change(policy, 2)
    current = output(policy)
    with policy.base():
        base = output(policy)
        with policy.using("old"):
            assert torch.equal(output(policy), old)
            with policy.base():
                assert torch.equal(output(policy), base)
            with policy.using("old"):
                assert torch.equal(output(policy), old)
            assert torch.equal(output(policy), old)
        assert torch.equal(output(policy), base)
    assert torch.equal(output(policy), current)
    for enter in (policy.base, lambda: policy.using("old")):
        with pytest.raises(ZeroDivisionError), enter():
            raise ZeroDivisionError
        assert torch.equal(output(policy), current)
    assert all(p.requires_grad for p in policy.trainable())
    policy.predict(latents(policy), TIMESTEPS, PROMPTS).noise.sum().backward()
    assert all(p.grad is not None for p in policy.trainable())


def test_copies_are_saved_and_resumed_to_the_bit(tmp_path: Path) -> None:
    policy = make()
    plain = policy.state_dict()
    policy.save_adapter(tmp_path / "plain")
    policy.keep("old")
    change(policy, 2)
    policy.keep("average")
    policy.blend("average", 0.3)
    buffer = io.BytesIO()
    torch.save(policy.state_dict(), buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    other = make()
    other.load_state_dict(state)
    assert torch.equal(output(other), output(policy))
    for name in ("old", "average"):
        for own, theirs in zip(other.copies[name], policy.copies[name], strict=True):
            assert torch.equal(own, theirs) and not own.requires_grad
        with policy.using(name), other.using(name):
            assert torch.equal(output(other), output(policy))
    other.blend("old", 0.5)  # the loaded state is not the copy's memory
    assert all(torch.equal(state[key], value) for key, value in policy.state_dict().items())
    with policy.using("old"):  # wherever it is asked for, the state is that of the trained weights
        assert all(torch.equal(value, state[key]) for key, value in policy.state_dict().items())
        policy.save_adapter(tmp_path / "with copies")
    other.load_adapter(tmp_path / "with copies")
    assert torch.equal(output(other), output(policy))  # the current adapter, without a trace of copies
    names = {folder.name: next(folder.glob("*.safetensors")) for folder in tmp_path.iterdir()}
    assert len({file.stat().st_size for file in names.values()}) == 1
    other.load_state_dict(plain)  # as a checkpoint from before there were copies
    with pytest.raises(LookupError, match="there are: none"):
        other.using("old")


def test_every_pass_counts() -> None:
    policy = make()
    policy.keep("old")
    x, steps = latents(policy), torch.tensor([0, 1])
    noise = torch.randn((3, 2, *policy.latent_shape), generator=torch.Generator().manual_seed(0))
    calls: list[tuple[Callable[[], Any], int]] = [
        (lambda: policy.predict(x, TIMESTEPS, PROMPTS), 1),
        (lambda: policy.transition_vjp(x, steps, PROMPTS, x), 1),
        (lambda: policy.sample(noise, PROMPTS), 2),
        (lambda: policy.sample(noise, PROMPTS, with_kl=True), 4),
    ]
    for call, passes in calls:
        for enter in (policy.base, lambda: policy.using("old")):
            before = policy.nfe
            with enter():
                call()
            assert policy.nfe - before == passes * 2 * 2  # two latents, two branches of guidance
    before = policy.nfe
    policy.rollout_from(noise, PROMPTS, grad_from=1, checkpoint=True, with_kl=True).images.sum().backward()
    assert policy.nfe - before == 4 * 2 * 2  # what is computed again in the backward pass is no evaluation of its own


def gradients(policy: DiffusionPolicy, loss: Tensor) -> Tensor:
    for p in policy.trainable():
        p.grad = None
    loss.backward()
    return torch.cat([torch.as_tensor(p.grad).flatten() for p in policy.trainable()])


@pytest.mark.parametrize("grad_from", [0, 1])
def test_kl_of_a_chain_has_its_gradient_with_and_without_recomputation(grad_from: int) -> None:
    """Against central differences; a recomputed pass of the base model must be the base model's again."""
    policy = make()
    g = torch.Generator().manual_seed(5)
    noise = torch.randn((3, 2, *policy.latent_shape), generator=g)
    assert policy.rollout_from(noise, PROMPTS, grad_from=0).kl is None
    stored = policy.rollout_from(noise, PROMPTS, grad_from=grad_from, with_kl=True)
    assert stored.kl is not None
    measured = policy.sample(noise, PROMPTS, with_kl=True)[1]
    torch.testing.assert_close(stored.kl.detach(), measured, rtol=1e-4, atol=1e-5)
    own = gradients(policy, stored.kl.sum())
    again = policy.rollout_from(noise, PROMPTS, grad_from=grad_from, checkpoint=True, with_kl=True)
    assert again.kl is not None
    recomputed = gradients(policy, again.kl.sum())
    assert (recomputed - own).norm() < 1e-4 * own.norm()
    if grad_from == 0:
        direction = own / own.norm()
        parts = direction.split([p.numel() for p in policy.trainable()])
        values = []
        for h in (0.02, -0.04):  # to +h and on to -h
            with torch.no_grad():
                for p, part in zip(policy.trainable(), parts, strict=True):
                    p += h * part.view_as(p)
            kl = policy.sample(noise, PROMPTS, with_kl=True)[1]
            assert kl is not None
            values.append(kl.double().sum().item())
        assert (values[0] - values[1]) / 0.04 == pytest.approx(own.norm().item(), rel=0.01)


def test_a_graph_stays_that_of_the_model_it_was_made_under() -> None:
    policy = make()
    policy.keep("old")
    x = latents(policy).requires_grad_()
    with policy.using("old"):
        inside = torch.autograd.grad(policy.predict(x, TIMESTEPS, PROMPTS).noise.sum(), x)[0]
    change(policy, 2)
    for checkpoint in (False, True):
        with policy.using("old"):
            prediction = policy.predict(x, TIMESTEPS, PROMPTS, checkpoint=checkpoint).noise.sum()
        outside = torch.autograd.grad(prediction, x)[0]
        torch.testing.assert_close(outside, inside, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_changes_its_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With dynamo's capture and guards; code generation, which takes minutes, is left out."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = make(), make(Runtime(compile=True))
    for policy in (plain, compiled):
        policy.keep("old")
        change(policy, 2)
    seen = []
    for policy in (plain, compiled):
        outputs = [output(policy)]
        for context in (policy.using("old"), policy.base()):
            with context:
                outputs.append(output(policy))
        change(policy, 3)
        seen.append(torch.stack([*outputs, output(policy)]))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)
    assert (seen[0][1:] - seen[0][:-1]).abs().amax((1, 2, 3, 4)).min() > 1e-3
