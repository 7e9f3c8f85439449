"""A chain of Gaussians whose means are parameters: small enough to differentiate by hand, with the real interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from overopt_bench.compute.processes import World
from overopt_bench.types import Prediction, Schedule, TrainContext, Trajectory, Transition

PROMPTS = ("ant", "bee", "cat", "dog")


class ToySchedule:
    """T training timesteps, one a step; the network's output is the noise, and also what a step adds to x / 2."""

    def __init__(self, steps: int, std: float, dtype: torch.dtype, device: str) -> None:
        self.timesteps, self.num_train_timesteps = torch.arange(steps, device=device).flip(0), steps
        self.eta, self.std, self.dtype = torch.ones(steps, dtype=torch.float64), std, dtype

    def levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The variance of the noise is 1 / (T + 1) at timestep 0 and T / (T + 1) at the last, T - 1."""
        variance = ((timesteps + 1) / (self.num_train_timesteps + 1)).to(self.dtype).view(-1, 1, 1, 1)
        return (1 - variance).sqrt(), variance.sqrt()

    def predict(self, x: Tensor, output: Tensor, timesteps: Tensor) -> Prediction:
        signal, noise = self.levels(timesteps)
        return Prediction((x - noise * output) / signal, output)

    def transition(self, x: Tensor, output: Tensor, steps: Tensor, eta: Tensor | None = None) -> Transition:
        eta = (self.eta if eta is None else eta).to(x)
        return Transition(x / 2 + output, self.std * eta[steps].view(-1, 1, 1, 1))


class ToyPolicy:
    """x_{i+1} ~ N(x_i / 2 + shift_i, std^2); the image is the last latent itself, unclamped, as three equal pixels."""

    def __init__(
        self, steps: int = 2, dimensions: int = 2, std: float = 0.5, dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.num_steps, self.latent_shape, self.nfe = steps, (dimensions, 1, 1), 0
        self.device, self.dtype = torch.device(device), dtype
        self.schedule: Schedule = ToySchedule(steps, std, dtype, device)
        self.world = World(device=device)
        self.shift = nn.Parameter(torch.zeros(steps, dimensions, dtype=dtype, device=device))
        self._copies: dict[str, Tensor] = {}
        self._worn: Tensor | None = None  # what stands in place of the shift

    def trainable(self) -> list[nn.Parameter]:
        return [self.shift]

    @contextmanager
    def _wearing(self, shift: Tensor) -> Iterator[None]:
        before, self._worn = self._worn, shift
        try:
            yield
        finally:
            self._worn = before

    def base(self) -> AbstractContextManager[None]:
        return self._wearing(torch.zeros_like(self.shift))

    def keep(self, name: str) -> None:
        self._copies[name] = self.shift.detach().clone()

    def using(self, name: str) -> AbstractContextManager[None]:
        return self._wearing(self._copies[name])

    def blend(self, name: str, decay: float) -> None:
        self._copies[name] = self._copies[name].lerp(self.shift.detach(), 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return {"shift": self.shift.detach().clone(), **self._copies}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._copies = {name: value.clone() for name, value in state.items() if name != "shift"}
        with torch.no_grad():
            self.shift.copy_(state["shift"])

    def _output(self, steps: Tensor) -> Tensor:
        self.nfe += len(steps)
        return (self.shift if self._worn is None else self._worn)[steps][..., None, None]

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False,
        *, eta: Tensor | None = None,
    ) -> Transition:  # fmt: skip
        return self.schedule.transition(latents, self._output(steps), steps, eta)

    def transition_vjp(self, latents: Tensor, steps: Tensor, prompts: Sequence[str], vector: Tensor) -> Tensor:
        x = latents.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self.transition(x, steps, prompts).mean, x, vector)[0]

    def predict(
        self, latents: Tensor, timesteps: Tensor, prompts: Sequence[str], *, checkpoint: bool = False
    ) -> Prediction:
        return self.schedule.predict(latents, self._output(self.num_steps - 1 - timesteps), timesteps)

    def add_noise(self, clean: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        signal, level = self.schedule.levels(timesteps)
        return signal * clean + level * noise

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1, keepdim=True).expand(-1, 3, 1, 1)

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        shape = (self.num_steps + 1, n, *self.latent_shape)
        return torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)

    def rollout(
        self, prompts: Sequence[str], generator: Generator, *, eta: Tensor | None = None, with_kl: bool = False,
        with_means: bool = False,
    ) -> Trajectory:  # fmt: skip
        noise = self.draw_noise(len(prompts), generator)
        return self._chains(noise, prompts, None, eta=eta, with_kl=with_kl, with_means=with_means)

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False, with_kl: bool = False
    ) -> Trajectory:
        return self._chains(noise, prompts, grad_from, with_kl=with_kl)

    def _chains(
        self, noise: Tensor, prompts: Sequence[str], grad_from: int | None, *, eta: Tensor | None = None,
        with_kl: bool = False, with_means: bool = False,
    ) -> Trajectory:  # fmt: skip
        x = noise[0]
        latents, log_probs, kl, means = [x], [], [], []
        for i in range(self.num_steps):
            steps = torch.full((len(prompts),), i)
            noisy = bool((self.schedule.eta if eta is None else eta)[i] > 0)
            with torch.set_grad_enabled(grad_from is not None and i >= grad_from):
                step = self.transition(x, steps, prompts, eta=eta)
                if with_kl and noisy:
                    with self.base():
                        kl.append(step.kl(self.transition(x, steps, prompts, eta=eta)))
                elif with_kl:
                    kl.append(torch.full_like(x[:, 0, 0, 0], torch.nan))
                x = step.sample(noise[i + 1])
            log_probs.append(step.log_prob(x).detach() if noisy else torch.full_like(x[:, 0, 0, 0], torch.nan).detach())
            latents.append(x.detach())
            means.append(step.mean.detach())
        return Trajectory(
            tuple(prompts), torch.stack(latents, 1), self.schedule.timesteps, torch.stack(log_probs, 1), self.decode(x),
            torch.stack(kl, 1) if with_kl else None, torch.stack(means, 1) if with_means else None,
        )  # fmt: skip


class ToyProxy:
    """-(pixel - 1)^2: the best mean image is 1, whatever the noise. Counts what it scored."""

    name, differentiable = "toy", True

    def __init__(self, left: int = 10**9) -> None:
        self.left = left

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        self.left -= len(images)
        assert self.left >= 0, "overspent"
        return -((images[:, 0, 0, 0] - 1) ** 2)


class Spy:
    """Wraps a method and keeps what it was called with by position."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._method = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.calls.append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args))
        return self._method(*args, **named)

    def joined(self, k: int) -> Tensor:
        return torch.cat([call[k] for call in self.calls])


def context(policy: Any, *, seed: int = 0, proxy: ToyProxy | None = None) -> TrainContext:
    """What the harness would give to an algorithm; features are the pixel and its square."""
    proxy = proxy or ToyProxy()
    generators = {
        name: Generator().manual_seed(seed * 10 + k)
        for k, name in enumerate(("sampling", "prompts", "batch", "critic"))
    }

    def draw(n: int, group: int) -> list[str]:
        assert n % group == 0, "the harness refuses unequal groups"
        picks = torch.randint(len(PROMPTS), (n // group,), generator=generators["prompts"]).tolist()
        return [PROMPTS[k] for k in picks for _ in range(group)]

    encoder: Callable[[Tensor], Tensor] = lambda images: torch.stack([images[:, 0, 0, 0], images[:, 0, 0, 0] ** 2], 1)  # noqa: E731
    return TrainContext(policy, proxy, encoder, 2, PROMPTS, draw, generators, lambda: proxy.left)
