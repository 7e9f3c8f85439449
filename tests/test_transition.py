"""DDIM as a Gaussian, against closed forms, diffusers' scheduler and torch.distributions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from overopt_bench.diffusion.ddim import ddim_transition
from overopt_bench.types.transition import Transition

GOLDEN = np.load(Path(__file__).parent / "golden" / "ddim.npz")
ETAS = list(enumerate(GOLDEN["eta"].tolist()))


def golden(name: str, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.asarray(GOLDEN[name])).to(dtype)


@pytest.mark.parametrize(("e", "eta"), ETAS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_step_matches_closed_form(e: int, eta: float, dtype: torch.dtype, tolerance: float) -> None:
    for p in range(len(GOLDEN["t"])):
        alpha, alpha_prev = (golden(k, dtype)[p].expand(2) for k in ("alpha_t", "alpha_prev"))
        own, ref = (
            ddim_transition(golden("x_t", dtype)[p], golden(k, dtype)[p], alpha, alpha_prev, eta)
            for k in ("eps", "eps_ref")
        )
        torch.testing.assert_close(own.mean, golden("mean", dtype)[p, e], rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(
            own.std.flatten(), golden("sigma", dtype)[p, e].expand(2), rtol=tolerance, atol=tolerance
        )
        noise = golden("noise", dtype)[p]
        torch.testing.assert_close(own.sample(noise), golden("x_prev", dtype)[p, e], rtol=tolerance, atol=tolerance)
        if eta == 0:
            with pytest.raises(ValueError, match="eta > 0"):
                own.log_prob(noise)
            continue
        x = golden("x_prev", dtype)[p, e]
        torch.testing.assert_close(own.log_prob(x), golden("log_prob_sum", dtype)[p, e], rtol=10 * tolerance, atol=1e-4)
        torch.testing.assert_close(own.kl(ref), golden("kl_sum", dtype)[p, e], rtol=10 * tolerance, atol=1e-6)


def test_step_worked_by_hand() -> None:
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    quarter, later = torch.tensor([0.25], dtype=torch.float64), torch.tensor([0.64], dtype=torch.float64)
    step = ddim_transition(one, one / 2, quarter, later, eta=1.0)
    assert step.std.item() == pytest.approx(0.2925**0.5) and step.mean.item() == pytest.approx(1.037083, abs=1e-6)
    assert ddim_transition(one, one / 2, quarter, later, eta=0.0).mean.item() == pytest.approx(1.207180, abs=1e-6)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_mean_is_diffusers_step_without_noise(eta: float) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )  # fmt: skip
    scheduler.set_timesteps(10)
    g = torch.Generator().manual_seed(0)
    for t in scheduler.timesteps:
        x, eps = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 4, 8, 8, generator=g)
        expected = scheduler.step(eps, t, x, eta=eta, variance_noise=torch.zeros_like(x)).prev_sample
        before = max(int(t) - 100, 0)
        alphas = scheduler.alphas_cumprod
        own = ddim_transition(x, eps, alphas[t].view(1), alphas[before].view(1), eta)
        torch.testing.assert_close(own.mean, expected, rtol=1e-4, atol=1e-5)


def test_sigmas_of_stable_diffusion() -> None:
    """T = 50, eta = 1: values that agree with diffusers' own; most of the path KL hangs on the last two."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = torch.cumprod(1 - betas, 0)
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for tau, sigma in {981: 0.4545, 581: 0.3229, 181: 0.1771, 41: 0.0999, 21: 0.0395, 1: 0.0207}.items():
        step = ddim_transition(x, x, alphas[tau].view(1), alphas[max(tau - 20, 0)].view(1), 1.0)
        assert step.std.item() == pytest.approx(sigma, abs=1e-4)


def test_log_prob_is_torchs_normal() -> None:
    g = torch.Generator().manual_seed(1)
    mean, x = torch.randn(3, 4, 2, 2, generator=g), torch.randn(3, 4, 2, 2, generator=g)
    std = torch.tensor([0.02, 0.5, 3.0]).view(3, 1, 1, 1)
    expected = torch.distributions.Normal(mean, std).log_prob(x).flatten(1).sum(1)
    torch.testing.assert_close(Transition(mean, std).log_prob(x), expected, rtol=1e-5, atol=1e-3)


def test_kl_is_the_mean_log_ratio() -> None:
    g = torch.Generator().manual_seed(2)
    a = Transition(torch.zeros(1, 1, 1, 2), torch.full((1, 1, 1, 1), 0.7))
    b = Transition(torch.tensor([0.3, -0.5]).view(1, 1, 1, 2), a.std)
    n = 20_000
    x = a.mean + a.std * torch.randn(n, 1, 1, 2, generator=g)
    ratios = Transition(a.mean.expand(n, 1, 1, 2), a.std.expand(n, 1, 1, 1)).log_prob(x) - Transition(
        b.mean.expand(n, 1, 1, 2), b.std.expand(n, 1, 1, 1)
    ).log_prob(x)
    assert abs(ratios.mean() - a.kl(b)).item() < 4 * (ratios.std() / n**0.5).item()
