"""The policy's seams against numbers of NumPy alone: windows of noise, adjoints, re-noised predictions, group ratios."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from formula import FormulaPolicy, prompts
from torch import Tensor

from overopt_bench.diffusion.ddim import ddim_transition
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.diffusion.schedule import DDIMSchedule
from overopt_bench.registry import get_suite
from overopt_bench.types import Transition

GOLDEN = np.load(Path(__file__).parent / "golden" / "beyond.npz")
ALPHAS = torch.from_numpy(np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))  # Stable Diffusion's


def golden(name: str) -> Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def schedule(tau: Tensor, eta: Tensor | None = None) -> DDIMSchedule:
    return DDIMSchedule(tau, ALPHAS, "epsilon", torch.ones(len(tau), dtype=torch.float64) if eta is None else eta)


def as_latents(x: Tensor) -> Tensor:
    """``[..., d]`` to ``[..., d, 1, 1]``."""
    return x[..., None, None]


# ---------------------------------------------------------------- a window of noise


def window_output(x: Tensor, timesteps: Tensor, tuned: bool) -> Tensor:
    step = (golden("window_tau") > timesteps[0]).sum()
    flat = x.flatten(1).double()
    out = torch.tanh(flat @ golden("window_matrix") + golden("window_vector")[step])
    return as_latents(out + 0.05 * torch.sin(flat) * tuned).to(x.dtype)


@pytest.mark.parametrize("given", [False, True], ids=["the schedule's own", "given to the rollout"])
def test_a_chain_with_a_window_of_noise(given: bool) -> None:
    """Latents, log-probabilities and KL inside the window; outside they are NaN, for a Dirac has neither."""
    tau, eta = golden("window_tau"), golden("window_eta")
    own = schedule(tau, None if given else eta)
    torch.testing.assert_close(own.alpha_prev, golden("window_abar_prev"), rtol=1e-12, atol=0)
    policy = FormulaPolicy(own, window_output)
    noise = as_latents(golden("window_noise"))
    chain, kl = policy.sample(noise.float(), prompts(3), with_kl=True, eta=eta if given else None)
    inside = eta > 0
    torch.testing.assert_close(
        chain.latents.flatten(2).double(), golden("window_latents").transpose(0, 1), rtol=1e-4, atol=1e-4
    )
    assert kl is not None and torch.equal(kl.isnan(), ~inside.expand(3, -1))
    assert torch.equal(chain.log_probs.isnan(), ~inside.expand(3, -1))
    for found, truth in ((chain.log_probs, golden("window_log_prob_sum")), (kl, golden("window_kl_sum"))):
        torch.testing.assert_close(found[:, inside].double(), truth.T[:, inside], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("i", range(10))
def test_each_step_of_a_window(i: int) -> None:
    """Means and deviations in float64, and a refusal where a step is deterministic."""
    x, own = as_latents(golden("window_latents")[i]), schedule(golden("window_tau"))
    tau = golden("window_tau")[i].expand(3)
    steps, eta = torch.full((3,), i), golden("window_eta")
    step, base = (own.transition(x, window_output(x, tau, tuned), steps, eta) for tuned in (True, False))
    torch.testing.assert_close(step.mean.flatten(1), golden("window_mean")[i], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(step.std.flatten(), golden("window_sigma")[i].expand(3), rtol=1e-9, atol=0)
    x_next = as_latents(golden("window_latents")[i + 1])
    if eta[i] == 0:
        with pytest.raises(ValueError, match=r"no density, so its log-probability does not exist; .* eta > 0"):
            step.log_prob(x_next)
        with pytest.raises(ValueError, match=r"no density, so its KL does not exist"):
            step.kl(base)
    else:
        torch.testing.assert_close(step.log_prob(x_next), golden("window_log_prob_sum")[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(step.kl(base), golden("window_kl_sum")[i], rtol=1e-8, atol=1e-9)


def test_a_batch_of_steps_knows_without_a_look_at_its_deviations_whether_all_have_noise() -> None:
    own, x = schedule(golden("window_tau")), torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    start, eta = int(golden("window_start")), golden("window_eta")
    inside, mixed = torch.tensor([start, start + 1]), torch.tensor([start, start + 3])
    assert own.transition(x, x, mixed).noisy is True  # eta is 1 everywhere
    assert own.transition(x, x, inside, eta).noisy is True and own.transition(x, x, mixed, eta).noisy is False
    unknown = Transition(x, torch.tensor([0.5, 0.0]).view(2, 1, 1, 1))
    with pytest.raises(ValueError, match="eta > 0"):
        unknown.log_prob(x)
    for wrong in (eta[1:], eta + 0.5, -eta, eta * torch.nan):
        with pytest.raises(ValueError, match=r"eta must be 10 numbers in \[0, 1\], one a step, not \["):
            own.transition(x, x, inside, wrong)


# ---------------------------------------------------------------- adjoints


@pytest.mark.parametrize("steps", [5, 50])
def test_adjoint_of_a_gaussian_chain_is_the_closed_form(steps: int) -> None:
    """With the exact predictor of N(m, s^2) the base chain is linear, and so is its adjoint of the reward g x."""
    m, s, lam, g = (float(GOLDEN[f"adjoint_{name}"]) for name in ("m", "s", "lam", "g"))

    def exact(x: Tensor, timesteps: Tensor, tuned: bool) -> Tensor:
        a = ALPHAS[timesteps].view(-1, 1, 1, 1).to(x)
        return (1 - a).sqrt() * (x - a.sqrt() * m) / (a * s**2 + 1 - a) + (torch.sin(x) if tuned else 0)

    policy = FormulaPolicy(schedule(golden(f"adjoint_t{steps}_tau")), exact)
    policy.micro_batch = 2
    x = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    adjoint = torch.full((3, 2, 1, 1), -lam * g)
    found = [adjoint]
    with policy.base():
        for i in reversed(range(steps)):
            adjoint = policy.transition_vjp(x, torch.full((3,), i), prompts(3), adjoint)
            found.append(adjoint)
    truth = golden(f"adjoint_t{steps}_adjoint").float().flip(0).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(torch.stack(found), truth.expand(-1, 3, 2, 1, 1), rtol=1e-4, atol=1e-6)
    assert not adjoint.requires_grad


def test_adjoint_in_three_dimensions_is_multiplied_by_the_transposes() -> None:
    class Linear(DDIMSchedule):
        """The network's output is the mean."""

        def transition(self, x: Tensor, output: Tensor, steps: Tensor, eta: Tensor | None = None) -> Transition:
            return Transition(output, golden("adjoint_md_sigma")[steps].view(-1, 1, 1, 1).to(x))

    jacobians, tau = golden("adjoint_md_jacobian").float(), torch.tensor([4, 3, 2, 1])

    def mean(x: Tensor, timesteps: Tensor, tuned: bool) -> Tensor:
        return torch.einsum("bij,bjhw->bihw", jacobians[4 - timesteps], x)

    policy = FormulaPolicy(Linear(tau, ALPHAS, "epsilon", torch.ones(4, dtype=torch.float64)), mean)
    truth, x = golden("adjoint_md_adjoint").float(), torch.ones(2, 3, 1, 1)
    for i in range(4):
        vector = as_latents(truth[i + 1]).expand(2, -1, -1, -1)
        own = policy.transition_vjp(x, torch.tensor([i, i]), prompts(2), vector)
        torch.testing.assert_close(own.flatten(1), truth[i].expand(2, -1), rtol=1e-5, atol=1e-6)
        shift = as_latents(golden("adjoint_md_mean_difference")[i].float())
        step = policy.transition(x, torch.tensor([i, i]), prompts(2))
        loss = ((shift / step.std + step.std * vector) ** 2).flatten(1).sum(1)  # Adjoint Matching's, with these seams
        torch.testing.assert_close(loss, golden("adjoint_md_loss")[i].float().expand(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whose", ["the base model's", "a copy's"])
def test_vector_product_of_the_u_net_against_central_differences_in_float64(whose: str) -> None:
    """Of the mini suite's own U-Net, guided, with other timesteps in one batch, in micro-batches."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=4, guidance_scale=1.5, eta=1.0, lora_rank=2, lora_alpha=2, seed=0
    )
    g, words, steps = torch.Generator().manual_seed(1), ["penguin", "fox", "owl"], torch.tensor([0, 3, 1])
    with torch.no_grad():
        for p in policy.trainable():
            p += 0.1 * torch.randn(p.shape, generator=g)
    x, vector, way = torch.randn(3, 3, *policy.latent_shape, generator=g)
    policy.micro_batch = 2
    policy.keep("old")
    with policy.base() if whose == "the base model's" else policy.using("old"):
        product = policy.transition_vjp(x, steps, words, vector)
        unet = copy.deepcopy(policy.unet).double()
    own: Any = policy.schedule
    embeds, t = policy.network.condition(words).embeds.double(), own.timesteps[steps]

    @torch.no_grad()
    def mean(x: Tensor) -> Tensor:
        empty, full = unet(torch.cat([x, x]), torch.cat([t, t]), embeds).sample.chunk(2)
        alpha, alpha_prev = own.alpha[steps].double(), own.alpha_prev[steps].double()
        return ddim_transition(x, empty + 1.5 * (full - empty), alpha, alpha_prev, 1.0).mean

    h = 1e-4
    change = (mean(x.double() + h * way) - mean(x.double() - h * way)) / (2 * h)
    by_differences = (change * vector).flatten(1).sum(1)  # v . J way
    torch.testing.assert_close((product * way).double().flatten(1).sum(1), by_differences, rtol=1e-4, atol=1e-4)
    assert all(p.grad is None for p in policy.trainable())


# ---------------------------------------------------------------- predictions at re-noised latents


def timesteps_of(alphas: Tensor) -> Tensor:
    """The training timesteps ``[B]`` with these alphas."""
    found = (ALPHAS - alphas[:, None]).abs().argmin(1)
    torch.testing.assert_close(ALPHAS[found], alphas, rtol=1e-12, atol=0)
    return found


def test_renoised_latents_and_mixtures_of_predictions() -> None:
    """DiffusionNFT's x_t, X+, X- and distance to the base model, as ``add_noise`` and ``predict`` give them."""
    old, theta, ref = (golden(f"nft_eps_{name}").float() for name in ("old", "theta", "ref"))
    beta, tau = float(GOLDEN["nft_beta"]), timesteps_of(golden("nft_abar"))
    outputs = {
        "theta": theta,
        "ref": ref,
        "plus": beta * theta + (1 - beta) * old,
        "minus": (1 + beta) * old - beta * theta,
    }
    name = ""
    policy = FormulaPolicy(schedule(torch.tensor([1])), lambda x, t, tuned: outputs[name])
    y = policy.add_noise(golden("nft_x0").float(), tau, golden("nft_noise").float())
    torch.testing.assert_close(y.double(), golden("nft_x_t"), rtol=1e-5, atol=1e-5)
    clean = {}
    for name in outputs:
        clean[name] = policy.predict(y, tau, prompts(6)).clean.double()
        torch.testing.assert_close(policy.predict(y, tau, prompts(6)).noise, outputs[name])
    torch.testing.assert_close(clean["plus"], golden("nft_x0_plus"), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clean["minus"], golden("nft_x0_minus"), rtol=1e-4, atol=1e-4)
    apart = ((clean["theta"] - clean["ref"]) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(apart, golden("nft_ref_x0"), rtol=1e-3, atol=1e-5)


def test_a_renoised_latent_worked_by_hand() -> None:
    """At alpha .64: x_0 = 1 and n = .5 give y = 1.1; e = .3, .35 and .25 then mean X = 1.15, 1.1125 and 1.1875."""
    own = DDIMSchedule(torch.tensor([0]), torch.tensor([0.64]), "epsilon", torch.ones(1, dtype=torch.float64))
    zero = torch.zeros(1, dtype=torch.long)
    outputs = iter([0.3, 0.35, 0.25])
    policy = FormulaPolicy(own, lambda x, t, tuned: torch.full_like(x, next(outputs)))
    y = policy.add_noise(torch.ones(1, 1, 1, 1), zero, torch.full((1, 1, 1, 1), 0.5))
    assert y.item() == pytest.approx(1.1)
    for expected in (1.15, 1.1125, 1.1875):
        assert policy.predict(y, zero, prompts(1)).clean.item() == pytest.approx(expected)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_what_was_mixed_is_found_again(prediction: Any) -> None:
    """A network that knows the noise, the image or the velocity gives both, at any training timestep."""
    g = torch.Generator().manual_seed(0)
    x0, n = torch.randn(2, 5, 4, 2, 2, generator=g, dtype=torch.float64)
    tau = torch.tensor([0, 1, 333, 700, 999])
    own = DDIMSchedule(torch.tensor([1]), ALPHAS, prediction, torch.ones(1, dtype=torch.float64))
    signal, noise = own.levels(tau)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(signal))
    outputs = {"epsilon": n, "sample": x0, "v_prediction": signal * n - noise * x0}
    found = own.predict(signal * x0 + noise * n, outputs[prediction], tau)
    torch.testing.assert_close(found.clean, x0)
    torch.testing.assert_close(found.noise, n)


# ---------------------------------------------------------------- ratios of a group-relative update


def test_ratio_kl_and_guard_of_two_policies() -> None:
    """From the means of the current and of the old policy, with the deviation that both share."""
    mu, old, x_next, noise = (as_latents(golden(f"grpo_{name}")) for name in ("mu", "mu_old", "x_next", "noise"))
    std = golden("grpo_sigma").view(-1, 1, 1, 1)
    now, before = Transition(mu, std), Transition(old, std)
    torch.testing.assert_close(before.sample(noise), x_next)
    log_ratio = (now.log_prob(x_next) - before.log_prob(x_next)) / mu[0].numel()
    torch.testing.assert_close(log_ratio, golden("grpo_log_ratio"), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(now.kl(before), golden("grpo_kl_sum"), rtol=1e-9, atol=1e-12)
    # GRPO-Guard: sigma * mean log-ratio + mean ||mu - mu_old||^2 / (2 sigma)
    sigma = std.flatten()
    guard = sigma * (log_ratio + now.kl(before) / mu[0].numel())
    torch.testing.assert_close(guard, golden("grpo_guard_log_ratio"), rtol=1e-9, atol=1e-12)
