"""A second schedule, flow matching, on the same policy: what a model of another kind has to bring, and no more."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from formula import FormulaPolicy, prompts
from torch import Tensor
from toy_policy import context

from overopt_bench import cli
from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.suites.mini import MiniSuite
from overopt_bench.types import Prediction, Transition


@dataclass(frozen=True)
class FlowSchedule:
    """Rectified flow, x_t = (1 - t) x_0 + t n; the network's output is the velocity n - x_0.

    A step is Euler-Maruyama's for the stochastic equation with the flow's marginals (Flow-GRPO, arXiv 2505.05470,
    eq. 9), sigma_t = eta sqrt(t / (1 - t)). Training timestep k is t = (k + 1) / (N + 1).
    """

    timesteps: Tensor
    eta: Tensor
    num_train_timesteps: int = 1000

    def time(self, timesteps: Tensor) -> Tensor:
        """``[B, 1, 1, 1]`` t in (0, 1) of training timesteps ``[B]``."""
        return ((timesteps + 1) / (self.num_train_timesteps + 1)).view(-1, 1, 1, 1)

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        t = self.time(timesteps)
        return 1 - t, t

    def predict(self, x: Tensor, output: Tensor, timesteps: Tensor) -> Prediction:
        t = self.time(timesteps)
        return Prediction(x - t * output, x + (1 - t) * output)

    def transition(self, x: Tensor, output: Tensor, steps: Tensor, eta: Tensor | None = None) -> Transition:
        eta = self.eta if eta is None else eta
        t = self.time(self.timesteps[steps])
        following = torch.cat([self.time(self.timesteps[1:]).flatten(), torch.zeros(1)])  # the last step ends at 0
        dt = t - following[steps].view(-1, 1, 1, 1)
        sigma = (eta[steps].view(-1, 1, 1, 1) * (t / (1 - t)).sqrt()).to(x)
        noise = self.predict(x, output, self.timesteps[steps]).noise
        mean = x - dt * (output + sigma**2 / (2 * t) * noise)
        return Transition(mean, sigma * dt.sqrt(), bool((eta[steps] > 0).all()))


def flow(steps: int, eta: float) -> FlowSchedule:
    timesteps = torch.linspace(990, 1, steps).round().long()
    return FlowSchedule(timesteps, torch.full((steps,), eta, dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_a_flow_draws_what_its_velocity_is_made_of(eta: float) -> None:
    """With the exact velocity for data N(m, s^2) the chain ends in that distribution, with noise and without."""
    m, s, n = 0.8, 0.5, 20_000
    own = flow(250, eta)

    def velocity(x: Tensor, timesteps: Tensor, tuned: bool) -> Tensor:
        t = own.time(timesteps)
        gain = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)  # Cov(n - x_0, x_t) / Var(x_t)
        return -m + gain * (x - (1 - t) * m)

    policy = FormulaPolicy(own, velocity)
    policy.micro_batch, policy.latent_shape = n, (1, 1, 1)
    chain = policy.rollout(prompts(n), torch.Generator().manual_seed(0))
    x = chain.latents[:, -1].flatten()
    assert x.mean().item() == pytest.approx(m, abs=0.02) and x.std().item() == pytest.approx(s, abs=0.02)
    assert chain.log_probs.isnan().all() if eta == 0 else chain.log_probs.isfinite().all()


def test_a_flow_finds_what_it_mixed() -> None:
    own, g = flow(4, 0.7), torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 3, 4, 2, 2, generator=g)
    tau = torch.tensor([0, 400, 999])
    policy = FormulaPolicy(own, lambda x, t, tuned: noise - clean)
    found = policy.predict(policy.add_noise(clean, tau, noise), tau, prompts(3))
    torch.testing.assert_close(found.clean, clean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.noise, noise, rtol=1e-5, atol=1e-5)


def test_ddpo_trains_the_mini_network_as_a_flow() -> None:
    """One epoch: nothing but the schedule is new, and before the first update every ratio is 1."""
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=3, guidance_scale=1.5, eta=0.7, lora_rank=2, lora_alpha=2, seed=0,
        schedule=flow(3, 0.7),
    )  # fmt: skip
    before = [p.detach().clone() for p in policy.trainable()]
    algorithm = DDPO(context(policy), DDPO.Params(samples_per_epoch=8, updates_per_epoch=1, lr=1e-3))
    metrics = algorithm.step()
    assert metrics["ratio/mean"] == pytest.approx(1, abs=1e-4) and metrics["clipfrac/first"] == 0
    assert metrics["grad_norm"] > 0
    assert any(not torch.equal(a, p) for a, p in zip(before, policy.trainable(), strict=True))
    rows = torch.arange(3)
    with torch.no_grad():
        after = policy.rollout(["fox"] * 3, torch.Generator().manual_seed(0))
        with policy.base():
            base = policy.transition(after.latents[:, 1], torch.ones_like(rows), ["fox"] * 3)
    own = policy.transition(after.latents[:, 1], torch.ones_like(rows), ["fox"] * 3)
    assert (own.kl(base) > 0).all()


@pytest.mark.slow
def test_a_suite_brings_its_schedule_to_a_run_and_to_its_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, float, str]] = []

    def schedule(self: MiniSuite, num_steps: int, eta: float, device: str) -> FlowSchedule:
        asked.append((num_steps, eta, device))
        return flow(num_steps, eta)

    monkeypatch.setattr(MiniSuite, "schedule", schedule)
    words = (
        "--algo ddpo --proxy aesthetic --num-steps 3 --eta 0.7 --budget 8 --eval-points 2 --eval-images 4 --device cpu"
    )
    settings = ["--set", "samples_per_epoch=8", "--set", "images_per_prompt=2"]
    assert cli.main(["run", *words.split(), *settings, "--suite", "mini", "--out", str(tmp_path)]) == 0
    (run,) = tmp_path.glob("mini/aesthetic/ddpo/seed0")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (update,) = [row for row in rows if row["event"] == "train"]
    assert update["clipfrac/first"] == 0 and update["grad_norm"] > 0
    policies: list[DiffusionPolicy] = []
    made = DiffusionPolicy.__init__
    monkeypatch.setattr(
        DiffusionPolicy, "__init__", lambda self, *a, **k: (policies.append(self), made(self, *a, **k))[1]
    )
    assert cli.main(["sample", str(run), "--prompt", "fox", "--count", "1", "--device", "cpu"]) == 0
    assert asked == [(3, 0.7, "cpu")] * 2 and isinstance(policies[0].schedule, FlowSchedule)
