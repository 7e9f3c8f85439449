"""The path-KL penalty: gradients against central differences and hand-worked cases, optima against closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from toy_policy import Spy, ToyPolicy, ToyProxy, context

from overopt_bench.algorithms.alignprop import AlignProp
from overopt_bench.algorithms.ddpo import DDPO
from overopt_bench.algorithms.grpo import GRPO
from overopt_bench.algorithms.tdpo import TDPO
from overopt_bench.compute.optimizer import Optimizer
from overopt_bench.mitigations.kl import KL
from overopt_bench.types import Algorithm, Mitigations, Transition, step_kl

STD, BETA = 0.5, 0.3
HUGE = 1e9  # a norm that clips nothing
START = [[0.2, -0.1], [0.3, 0.4], [-0.2, 0.1]]  # shifts of the three steps; the base model's are 0
PPO = {
    "samples_per_epoch": 6, "images_per_prompt": 3, "stats_buffer": 3, "stats_min_count": 3, "lr": 1e-9,
    "max_grad_norm": HUGE, "clip_range": 0.2, "log_prob_reduction": "sum",
}  # fmt: skip
SETTINGS: dict[type[Algorithm], dict[str, Any]] = {
    DDPO: PPO,
    TDPO: PPO,
    GRPO: {**{k: v for k, v in PPO.items() if not k.startswith("stats")}, "skip_last_steps": 0},
    AlignProp: {"batch_size": 8, "lr": 1e-9, "max_grad_norm": HUGE, "loss_coefficient": 1.0},
}
ONE_UPDATE: dict[type[Algorithm], dict[str, Any]] = {
    DDPO: {"updates_per_epoch": 1}, TDPO: {"batch_size": 6}, GRPO: {"updates_per_epoch": 1, "window": 2}
}  # fmt: skip


class Bending(ToyPolicy):
    """x_{i+1} ~ N(x_i / 2 + shift_i tanh(x_i), std^2), whose KL to the base model depends on where the chain is."""

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False,
        *, eta: Tensor | None = None,
    ) -> Transition:  # fmt: skip
        return self.schedule.transition(latents, self._output(steps) * latents.tanh(), steps, eta)


def bending(start: Sequence[Sequence[float]] = START) -> Bending:
    policy = Bending(steps=len(start), std=STD, dtype=torch.float64)
    with torch.no_grad():
        policy.shift.copy_(torch.tensor(start))
    return policy


def make(
    kind: type[Algorithm], policy: ToyPolicy, proxy: ToyProxy | None = None, *, kl: dict[str, Any] | None, **params: Any
) -> Any:
    ctx = context(policy, proxy=proxy)
    ctx.mitigations = Mitigations([] if kl is None else [KL(policy, KL.Params(**kl))])
    return kind(ctx, kind.Params(**params))


def first_gradient(algorithm: Any) -> Tensor:
    """The policy's gradient in the first update of a round."""
    optimizer: Optimizer = algorithm.optimizer if hasattr(algorithm, "optimizer") else algorithm.updater.optimizer
    seen: list[Tensor] = []
    optimizer.adamw.register_step_pre_hook(lambda *_: seen.append(optimizer.parameters[0].grad.clone()))
    algorithm.step()
    return seen[0]


def central_differences(value: Callable[[Tensor], Tensor], at: Tensor, h: float = 1e-5) -> Tensor:
    gradient = torch.zeros_like(at)
    for k in range(at.numel()):
        step = torch.zeros_like(at)
        step.view(-1)[k] = h
        gradient.view(-1)[k] = (value(at + step) - value(at - step)) / (2 * h)
    return gradient


def surrogate(call: tuple[Any, ...], shift: Tensor, beta: float, divisor: float = 1) -> Tensor:
    """The loss of one policy update by other means: PPO's clipped surrogate and beta times the KL of each transition."""
    latents, sample, step, _, old, advantages = call
    x, x_next = latents[sample, step], latents[sample, step + 1]
    mean = x / 2 + shift[step][..., None, None] * x.tanh()
    new = torch.distributions.Normal(mean, STD).log_prob(x_next).flatten(1).sum(1)
    ratio = ((new - old) / divisor).exp()
    policy_loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2))
    base = torch.distributions.Normal(x / 2, STD)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, STD), base).flatten(1).sum(1)
    return (policy_loss + beta * kl / divisor).mean()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", [DDPO, TDPO, GRPO])
def test_gradient_of_an_update_with_the_penalty_in_the_loss(kind: type[Algorithm], reduction: str) -> None:
    policy = bending()
    settings = {**SETTINGS[kind], **ONE_UPDATE[kind], "log_prob_reduction": reduction}
    algorithm = make(kind, policy, kl={"beta": BETA}, **settings)
    spy = Spy(algorithm.updater, "step")
    found = first_gradient(algorithm)
    divisor = 2 if reduction == "mean" else 1
    values = [
        central_differences(lambda shift, b=beta: surrogate(spy.calls[0], shift, b, divisor), torch.tensor(START).double())
        for beta in (BETA, 0.0)
    ]  # fmt: skip
    torch.testing.assert_close(found, values[0], rtol=1e-6, atol=1e-8)
    assert not torch.allclose(values[0], values[1], rtol=0.01)  # the penalty has a part in it


def chain_objective(noise: Tensor, shift: Tensor, beta: float) -> Tensor:
    """AlignProp's loss by other means: minus the toy reward plus beta times the path KL, a mean over the chains."""
    x, kl = noise[0], torch.zeros(noise.shape[1], dtype=torch.float64)
    for i in range(len(shift)):
        bend = shift[i][:, None, None] * x.tanh()
        kl = kl + (bend**2).flatten(1).sum(1) / (2 * STD**2)
        x = x / 2 + bend + STD * noise[i + 1]
    return ((x.mean((1, 2, 3)) - 1) ** 2 + beta * kl).mean()


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize("grad_steps", [3, 2])
def test_gradient_through_the_chain(where: str, grad_steps: int) -> None:
    """Of the last steps, whose KL also depends on the steps before; the truncated ones are constants."""
    policy, settings = bending(), {**SETTINGS[AlignProp], "truncation": "fixed", "grad_steps": grad_steps}
    algorithm = make(AlignProp, policy, kl={"beta": BETA, "where": where}, **settings)
    noise = policy.draw_noise(8, Generator().manual_seed(0))  # as the algorithm draws it
    found = first_gradient(algorithm)
    kept = torch.tensor(START).double()

    def value(shift: Tensor) -> Tensor:
        return chain_objective(noise, torch.cat([kept[: 3 - grad_steps], shift[3 - grad_steps :]]), BETA)

    torch.testing.assert_close(found, central_differences(value, kept), rtol=1e-6, atol=1e-8)


def test_a_target_is_missed_by_the_penalised_reward() -> None:
    """|r - beta KL - target| in the reward, |r - target| + beta KL in the loss."""
    losses = {}
    for where in ("reward", "loss"):
        kl = {"beta": BETA, "where": where}
        algorithm = make(AlignProp, bending(), kl=kl, loss="target", target=-5.0, batch_size=8, loss_coefficient=1.0)
        losses[where] = algorithm.step()["loss"]
    policy = bending()
    trajectory = policy.rollout_from(
        policy.draw_noise(8, Generator().manual_seed(0)), ["ant"] * 8, grad_from=3, with_kl=True
    )
    assert trajectory.kl is not None
    r, kl_path = ToyProxy()(trajectory.images, ["ant"] * 8), trajectory.kl.sum(1)
    assert losses["reward"] == pytest.approx((r - BETA * kl_path + 5).abs().mean().item())
    assert losses["loss"] == pytest.approx(((r + 5).abs() + BETA * kl_path).mean().item())


class TwoSteps(ToyPolicy):
    """x_1 = t_1 + z_1 / 2, x_2 = t_2 x_1 + z_2 / 2, base t = 1, at t = (1.2, 1.5); four chains with z = +-1.

    Their means are the exact expectations of what follows, for it is at most cubic in z.
    """

    def __init__(self) -> None:
        super().__init__(steps=2, dimensions=1, std=0.5, dtype=torch.float64)
        with torch.no_grad():
            self.shift.copy_(torch.tensor([[0.2], [0.5]]))

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False,
        *, eta: Tensor | None = None,
    ) -> Transition:  # fmt: skip
        t = 1 + self._output(steps)
        first = (steps == 0).view(-1, 1, 1, 1)
        return Transition(torch.where(first, t, t * latents), torch.full_like(t, 0.5))

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        z = torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1], [1, -1, 1, -1]]).double()
        return z[:, :n, None, None, None]


class Flat(ToyProxy):
    """Every image is worth the same, so that the penalty alone makes the gradient."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return 0 * super().__call__(images, prompts)


@pytest.mark.parametrize("kind", [DDPO, TDPO])
def test_both_parts_are_the_exact_gradient_of_the_path_kl(kind: type[Algorithm]) -> None:
    """KL_1 = 2 (t_1 - 1)^2 and KL_2 = 2 (t_2 - 1)^2 x_1^2, so d/dt_1 E = 0.8 in the loss and 1.2 in what follows.

    d/dt_2 E = 4 (t_2 - 1) E x_1^2 = 2 (1.2^2 + 0.25) = 3.38. The loss is a mean over two steps, so half of each.
    """
    own = {"updates_per_epoch": 1, "advantage_clip": 1e9} if kind is DDPO else {}
    params = {**PPO, **own, "samples_per_epoch": 4, "images_per_prompt": 4}
    found = {}
    for where in ("loss", "both"):
        algorithm = make(kind, TwoSteps(), Flat(), kl={"beta": 1.0, "where": where}, **params)
        if kind is TDPO:  # its advantages are minus a critic's values: no critic, no advantage
            torch.nn.init.zeros_(algorithm.critic.linear_layers()[-1].weight)
            torch.nn.init.zeros_(algorithm.critic.linear_layers()[-1].bias)
            algorithm.batches = lambda samples: [
                (torch.arange(samples).repeat_interleave(2), torch.tensor([0, 1] * samples))
            ]
        found[where] = first_gradient(algorithm).flatten()
    torch.testing.assert_close(found["loss"], torch.tensor([0.4, 1.69]).double(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found["both"], torch.tensor([1.0, 1.69]).double(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", [DDPO, TDPO])
def test_in_the_reward_it_comes_before_advantages_and_the_record_keeps_the_proxy(kind: type[Algorithm]) -> None:
    policy = bending()
    algorithm = make(kind, policy, kl={"beta": BETA, "where": "reward"}, **PPO)
    spy = Spy(algorithm.per_prompt_stats, "update")
    metrics = algorithm.step()
    twin = bending()
    prompts, learned = spy.calls[0]
    chains = twin.rollout(prompts, Generator().manual_seed(0), with_kl=True)
    assert chains.kl is not None and chains.kl.min() > 0
    rewards = ToyProxy()(chains.images, prompts)
    torch.testing.assert_close(learned, rewards - BETA * chains.kl.sum(1))
    assert metrics["proxy/mean"] == pytest.approx(rewards.mean().item())
    recorded = algorithm.ctx.mitigations.take_metrics(policy.world)
    assert recorded == {"mitigation/kl/reward": pytest.approx(BETA * chains.kl.sum(1).mean().item())}
    assert algorithm.ctx.mitigations.take_metrics(policy.world) == {"mitigation/kl/reward": 0.0}


def test_a_window_of_noise_has_a_kl_in_the_window_alone() -> None:
    """GRPO's window of two steps in three: the third is deterministic, and nothing of it is in the penalty."""
    policy = bending()
    algorithm = make(GRPO, policy, kl={"beta": BETA, "where": "reward"}, **{**SETTINGS[GRPO], "window": 2})
    seen = Spy(algorithm.ctx.mitigations.members[0], "reward")
    algorithm.step()
    _, chains = seen.calls[0]
    kl = step_kl(chains)
    assert ((kl == 0).sum(1) == 1).all() and ((kl > 0).sum(1) == 2).all() and torch.isnan(chains.kl).any()


def shares(steps: int) -> Tensor:
    """How much of each step's shift arrives in the image: the chain halves it at every later step."""
    return 0.5 ** torch.arange(steps - 1, -1, -1, dtype=torch.float64)


class Mirrored(ToyPolicy):
    """Chains in pairs of opposite noise, so that noise adds nothing to the mean gradient."""

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        half = super().draw_noise(n // 2, generator)
        return torch.cat([half, -half], 1)


def test_the_penalised_optimum_of_the_toy_is_the_closed_form() -> None:
    """Maximise -(m - 1)^2 - beta sum |s_i|^2 / (2 std^2), with m = sum_i c_i mean(s_i), c_i = 2^-(T-1-i), D dimensions.

    Its optimum has m = k / (1 + k) for k = 2 std^2 sum c_i^2 / (beta D), and s_i = 2 std^2 (1 - m) c_i / (beta D).
    """
    steps, dimensions, beta = 3, 2, 0.4
    policy = Mirrored(steps=steps, std=STD, dtype=torch.float64)
    algorithm = make(
        AlignProp, policy, kl={"beta": beta}, truncation="full", batch_size=16, lr=0.01, weight_decay=0.0,
        max_grad_norm=HUGE, loss_coefficient=1.0,
    )  # fmt: skip
    for _ in range(400):
        algorithm.step()
    c = shares(steps)
    k = (2 * STD**2 * (c**2).sum() / (beta * dimensions)).item()
    m = k / (1 + k)
    expected = (2 * STD**2 * (1 - m) * c / (beta * dimensions))[:, None].expand(-1, dimensions)
    torch.testing.assert_close(policy.shift.detach(), expected, rtol=1e-3, atol=1e-4)
    assert 0.3 < m < 0.7  # neither the base model nor the reward alone


@pytest.mark.parametrize("where", ["loss", "reward"])
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_beta_0_changes_no_bit_and_costs_no_pass(kind: type[Algorithm], where: str) -> None:
    params = {**SETTINGS[kind], "lr": 0.1}
    runs = []
    for kl in (None, {"beta": 0.0, "where": where}):
        policy = bending()
        algorithm = make(kind, policy, kl=kl, **params)
        metrics = [algorithm.step() for _ in range(2)]
        assert algorithm.ctx.mitigations.take_metrics(policy.world) == {}
        runs.append((metrics, policy.shift.tolist(), policy.nfe))
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("kind", "where", "passes"),
    [
        (DDPO, "loss", 6 * 3), (DDPO, "reward", 6 * 3), (DDPO, "both", 2 * 6 * 3),
        (TDPO, "loss", 6 * 3), (TDPO, "reward", 6 * 3), (TDPO, "both", 2 * 6 * 3),
        (GRPO, "loss", 6 * 3), (GRPO, "reward", 6 * 3), (GRPO, "both", 2 * 6 * 3),
        (AlignProp, "loss", 8 * 3), (AlignProp, "reward", 8 * 3),
    ],
)  # fmt: skip
def test_the_base_models_passes_count(kind: type[Algorithm], where: str, passes: int) -> None:
    spent = []
    for kl in (None, {"beta": BETA, "where": where}):
        policy = bending()
        make(kind, policy, kl=kl, **SETTINGS[kind]).step()
        spent.append(policy.nfe)
    assert spent[1] - spent[0] == passes
