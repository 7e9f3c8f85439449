"""The policy on small random Stable Diffusion checkpoints: diffusers' own images, precisions, micro-batches, compilation."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DDIMScheduler

from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.errors import UserError
from overopt_bench.registry import get_suite

PROMPTS = ["cat", "a dog on a hill"]


def make(folder: Path, name: str = "sd14", model: str | None = None, **options: Any) -> DiffusionPolicy:
    settings = {
        "num_steps": 4,
        "guidance_scale": 3.0,
        "eta": 1.0,
        "lora_rank": 4,
        "lora_alpha": 4,
        "seed": 0,
        **options,
    }
    policy = DiffusionPolicy(get_suite(name, folder, model).pipeline(), **settings)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return policy


def noise(policy: DiffusionPolicy, n: int = 2) -> torch.Tensor:
    return policy.draw_noise(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("suite", "model"),
    [("sd14", None), ("sd", "stable-diffusion-2-1"), ("sdxl", None)],
    ids=["epsilon", "velocity", "xl"],
)
def test_a_trained_adapter_draws_the_same_image_in_plain_diffusers(
    suite: str, model: str | None, tiny_weights: Path, tmp_path: Path
) -> None:
    """Everything but our policy is diffusers': its loader, prompt encoding, guidance and DDIM step."""
    policy = make(tiny_weights, suite, model and str(tiny_weights / model))
    z = noise(policy)
    ours = policy.sample(z, PROMPTS)[0].images
    with policy.base():
        assert (policy.sample(z, PROMPTS)[0].images - ours).abs().max() > 0.01
    policy.save_adapter(tmp_path)
    names = {"sd14": "stable-diffusion-v1-4", "sd": model or "", "sdxl": "stable-diffusion-xl-base-1.0"}
    plain = {} if suite == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_weights / names[suite], **plain)
    pipe.load_lora_weights(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    draws, step = iter(z[1:]), pipe.scheduler.step
    pipe.scheduler.step = lambda eps, t, x, **_: step(eps, t, x, eta=1.0, variance_noise=next(draws), return_dict=False)
    theirs = pipe(
        PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=z[0].clone(), height=32, width=32, output_type="pt"
    )
    # the last step differs where diffusers goes to t < 0: it takes the final alpha, we alphas_cumprod[0]; equal here
    torch.testing.assert_close(theirs.images, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suite", ["sd14", "sdxl"])
def test_half_precision_keeps_float32_where_it_counts(suite: str, tiny_weights: Path) -> None:
    full, half = make(tiny_weights, suite), make(tiny_weights, suite, precision="bfloat16")
    assert {p.dtype for p in half.trainable()} == {torch.float32}
    assert half.unet.conv_in.weight.dtype == torch.bfloat16 and half.vae.dtype == torch.bfloat16
    a, b = full.sample(noise(full), PROMPTS)[0], half.sample(noise(half), PROMPTS)[0]
    assert b.latents.dtype == b.log_probs.dtype == b.images.dtype == torch.float32
    assert (b.latents - a.latents).norm() < 0.05 * a.latents.norm()
    assert not torch.equal(a.latents, b.latents)
    rows = torch.arange(2)
    step = half.transition(b.latents[:, 1], torch.ones_like(rows), PROMPTS)
    ratio = (step.log_prob(b.latents[:, 2]) - b.log_probs[:, 1]).exp()
    torch.testing.assert_close(ratio, torch.ones(2))  # same batch, same kernels: no update, no change
    step.log_prob(b.latents[:, 2]).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.trainable())


def gradient(policy: DiffusionPolicy, parts: list[list[int]], **options: Any) -> torch.Tensor:
    """Of a policy-gradient loss and of a differentiable rollout, in the given micro-batches."""
    z = noise(policy, 4)
    words = PROMPTS * 2
    chain = policy.sample(z, words)[0]
    for p in policy.trainable():
        p.grad = None
    for part in parts:
        rows, own = torch.tensor(part), [words[k] for k in part]
        step = policy.transition(chain.latents[rows, 1], torch.ones_like(rows), own, **options)
        (step.log_prob(chain.latents[rows, 2]).sum() / 4e3).backward()
        images = policy.rollout_from(z[:, rows], own, grad_from=2, **options).images
        ((images - 0.5) ** 2).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


@pytest.mark.parametrize("suite", ["sd14", "sdxl"])
def test_micro_batches_checkpointing_and_attention_change_no_gradient(suite: str, tiny_weights: Path) -> None:
    """To 1e-5 of its norm: what fits the memory is not part of the experiment."""
    whole = gradient(make(tiny_weights, suite), [[0, 1, 2, 3]])
    others = {
        "micro-batches": gradient(make(tiny_weights, suite, runtime=Runtime(micro_batch=1)), [[0], [1, 2], [3]]),
        "checkpoint": gradient(make(tiny_weights, suite), [[0, 1, 2, 3]], checkpoint=True),
        "eager": gradient(make(tiny_weights, suite, runtime=Runtime(attention="eager")), [[0, 1, 2, 3]]),
    }
    for name, other in others.items():
        assert (whole - other).norm() <= 1e-5 * whole.norm(), name


def test_float16_gradients_survive_by_scaling(tiny_weights: Path) -> None:
    """A loss of DDPO's size, divided by latent and batch: scaled, float16's gradient is float32's; unscaled it is lost."""
    from overopt_bench.compute.optimizer import Optimizer

    seen = {}
    for precision, scaled in (("float32", False), ("float16", True), ("float16", False)):
        policy = make(tiny_weights, precision=precision)
        optimizer = Optimizer(
            policy.trainable(), lr=1e-3, weight_decay=0, max_grad_norm=1e9, world=policy.world, scaled=scaled
        )
        x, rows = noise(policy)[0], torch.arange(2)
        step = policy.transition(x, torch.ones_like(rows), PROMPTS)
        kept: list[torch.Tensor] = []
        optimizer.adamw.register_step_pre_hook(
            lambda *_, kept=kept, policy=policy: kept.append(torch.cat([p.grad.flatten() for p in policy.trainable()]))
        )
        optimizer.backward(step.mean.sum() * 1e-9)
        assert optimizer.step() > 0 or not scaled
        seen[precision, scaled] = kept[0]
    truth = seen["float32", False]
    assert (seen["float16", True] - truth).norm() < 0.05 * truth.norm()
    assert (seen["float16", False] - truth).norm() > 0.5 * truth.norm()


def test_inpainting_is_refused(tiny_weights: Path) -> None:
    pipeline = get_suite("sd14", tiny_weights).pipeline()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(UserError, match="inpainting is not supported"):
        DiffusionPolicy(pipeline, num_steps=3, guidance_scale=1.0, eta=1.0, lora_rank=2, lora_alpha=2, seed=0)


@pytest.mark.slow
def test_compiled_is_the_same_policy(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the adapter, and with a gradient; traced as always, but run by torch's fastest compiler to compile."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = make(tiny_weights), make(tiny_weights, runtime=Runtime(compile=True))
    # as many images as ``gradient`` has: tracing for any number of them takes minutes
    a, b = (policy.sample(noise(policy, 4), PROMPTS * 2, with_kl=True) for policy in (plain, compiled))
    torch.testing.assert_close(b[0].latents, a[0].latents, rtol=1e-4, atol=1e-4)
    assert a[1] is not None and b[1] is not None and a[1].sum() > 0
    torch.testing.assert_close(b[1], a[1], rtol=1e-3, atol=1e-3)
    whole, other = gradient(plain, [[0, 1, 2, 3]]), gradient(compiled, [[0, 1, 2, 3]])
    assert (whole - other).norm() <= 1e-4 * whole.norm()
