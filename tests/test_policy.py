"""The policy: ratios of 1, exact KL, and an adapter that plain diffusers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.suites.mini import WEIGHTS

PROMPTS = ["penguin", "fox", "penguin"]


def make(seed: int = 0, guidance_scale: float = 1.5, perturb: float = 0.0) -> DiffusionPolicy:
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=4, guidance_scale=guidance_scale, eta=1.0, lora_rank=4, lora_alpha=4,
        seed=seed,
    )  # fmt: skip
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable():
            p += perturb * torch.randn(p.shape, generator=g)
    return policy


def noise(policy: DiffusionPolicy, seed: int = 0) -> torch.Tensor:
    return torch.randn((5, 3, *policy.latent_shape), generator=torch.Generator().manual_seed(seed))


def test_ratio_is_one_before_any_update_also_in_other_batches() -> None:
    policy = make(perturb=0.1)
    with torch.no_grad():
        chain, _ = policy.sample(noise(policy), PROMPTS)
        for order in ([0, 1, 2], [2, 0]):
            for i in range(4):
                step = policy.transition(
                    chain.latents[order, i], torch.full((len(order),), i), [PROMPTS[k] for k in order]
                )
                ratio = (step.log_prob(chain.latents[order, i + 1]) - chain.log_probs[order, i]).exp()
                torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-3)


def test_path_kl_is_zero_at_first_and_the_mean_log_ratio_later() -> None:
    fresh = make()
    kl = fresh.sample(noise(fresh), PROMPTS, with_kl=True)[1]
    assert kl is not None and kl.shape == (3, 4) and (kl == 0).all()
    policy = make(perturb=0.05)
    n = 96
    many = ["fox"] * n
    with torch.no_grad():
        z = torch.randn((5, n, *policy.latent_shape), generator=torch.Generator().manual_seed(3))
        chain, kl = policy.sample(z, many, with_kl=True)
        ratios = torch.zeros(n)
        with policy.base():
            for i in range(4):
                step = policy.transition(chain.latents[:, i], torch.full((n,), i), many)
                ratios += chain.log_probs[:, i] - step.log_prob(chain.latents[:, i + 1])
    assert kl is not None and kl.mean() > 0
    gap = ratios - kl.sum(1)
    assert abs(gap.mean()) < 4 * gap.std() / n**0.5


@pytest.mark.parametrize("sizes", [(16,), (4, 4, 4, 4), (5, 5, 5, 1)])
def test_images_do_not_depend_on_the_batches_they_are_drawn_in(sizes: tuple[int, ...]) -> None:
    """So micro-batches, AlignProp's included, change memory and nothing else."""
    policy, prompts = make(perturb=0.1), ["penguin", "fox"] * 8
    with torch.no_grad():
        whole = policy.rollout(prompts, torch.Generator().manual_seed(3)).images
        generator, parts = torch.Generator().manual_seed(3), []
        for size in sizes:
            done = sum(map(len, parts))
            parts.append(policy.rollout(prompts[done : done + size], generator).images)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-4)


def test_base_turns_the_adapter_off_and_on_again() -> None:
    policy, plain = make(perturb=0.2), make()
    with torch.no_grad():
        tuned = policy.sample(noise(policy), PROMPTS)[0].images
        with policy.base():
            base = policy.sample(noise(policy), PROMPTS)[0].images
        again = policy.sample(noise(policy), PROMPTS)[0].images
    torch.testing.assert_close(base, plain.sample(noise(plain), PROMPTS)[0].images, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuned, again, rtol=0, atol=0)
    assert (tuned - base).abs().max() > 0.05


def test_guidance_of_one_is_the_conditional_prediction() -> None:
    policy, guided = make(guidance_scale=1.0), make(guidance_scale=3.0)
    x, timesteps = noise(policy)[0], torch.tensor([981, 500, 1])
    with torch.no_grad():
        eps = policy.predict(x, timesteps, PROMPTS).noise
        empty = policy.predict(x, timesteps, [""] * 3).noise
        torch.testing.assert_close(
            guided.predict(x, timesteps, PROMPTS).noise, empty + 3 * (eps - empty), rtol=1e-4, atol=1e-4
        )
    assert policy.nfe == 6 and guided.nfe == 6


@pytest.mark.parametrize("checkpoint", [False, True])
def test_truncated_rollout_has_the_gradient_of_its_last_steps(checkpoint: bool) -> None:
    policy = make(perturb=0.05)
    z = noise(policy)
    chain = policy.rollout_from(z, PROMPTS, grad_from=3, checkpoint=checkpoint)
    own = torch.autograd.grad(chain.images.sum(), policy.trainable())
    step = policy.transition(chain.latents[:, 3], torch.full((3,), 3), PROMPTS)
    by_hand = torch.autograd.grad(policy.decode(step.sample(z[4])).sum(), policy.trainable())
    for a, b in zip(own, by_hand, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert max(g.abs().max() for g in own) > 0
    with torch.no_grad():
        torch.testing.assert_close(policy.sample(z, PROMPTS)[0].images, chain.images, rtol=1e-5, atol=1e-5)


def test_adapter_gives_the_same_image_in_plain_diffusers(tmp_path: Path) -> None:
    policy = make(perturb=0.2)
    z = noise(policy)
    with torch.no_grad():
        ours, base = policy.sample(z, PROMPTS)[0].images, make().sample(z, PROMPTS)[0].images
    policy.save_adapter(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    pipe.load_lora_weights(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    draws, step = iter(z[1:]), pipe.scheduler.step
    # the same noise at every step: everything else is diffusers' own sampler
    pipe.scheduler.step = lambda eps, t, x, **_: step(eps, t, x, eta=1.0, variance_noise=next(draws), return_dict=False)
    theirs = pipe(
        PROMPTS, num_inference_steps=4, guidance_scale=1.5, latents=z[0].clone(), height=32, width=32, output_type="pt"
    ).images  # fmt: skip
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
    assert (ours - base).abs().max() > 0.05


def test_building_a_policy_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a, b, c = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(before, torch.get_rng_state())
    same = [torch.equal(x, y) for x, y in zip(a.trainable(), b.trainable(), strict=True)]
    assert all(same) and not all(torch.equal(x, y) for x, y in zip(a.trainable(), c.trainable(), strict=True))
