"""A chain of Gaussians whose means are parameters: small enough to differentiate by hand, with the real interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from overopt_bench.compute.processes import World
from overopt_bench.types import TrainContext, Trajectory
from overopt_bench.types.transition import Transition

PROMPTS = ("ant", "bee", "cat", "dog")


class ToyPolicy:
    """x_{i+1} ~ N(x_i / 2 + shift_i, std^2); the image is the last latent itself, unclamped, as three equal pixels."""

    def __init__(
        self, steps: int = 2, dimensions: int = 2, std: float = 0.5, dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.num_steps, self.latent_shape, self.nfe = steps, (dimensions, 1, 1), 0
        self.device, self.std, self.dtype = torch.device(device), std, dtype
        self.world = World(device=device)
        self.shift = nn.Parameter(torch.zeros(steps, dimensions, dtype=dtype, device=device))
        self._on = True

    def trainable(self) -> list[nn.Parameter]:
        return [self.shift]

    @contextmanager
    def base(self) -> Iterator[None]:
        self._on = False
        yield
        self._on = True

    def transition(
        self, latents: Tensor, steps: Tensor, prompts: Sequence[str], checkpoint: bool = False
    ) -> Transition:
        shift = self.shift[steps] if self._on else torch.zeros_like(self.shift[steps])
        std = torch.full((len(latents), 1, 1, 1), self.std, dtype=self.dtype, device=self.device)
        return Transition(latents / 2 + shift[..., None, None], std)

    def decode(self, latents: Tensor) -> Tensor:
        return latents.mean(1, keepdim=True).expand(-1, 3, 1, 1)

    def draw_noise(self, n: int, generator: Generator) -> Tensor:
        shape = (self.num_steps + 1, n, *self.latent_shape)
        return torch.randn(shape, generator=generator, dtype=self.dtype).to(self.device)

    def rollout(self, prompts: Sequence[str], generator: Generator) -> Trajectory:
        return self._chains(self.draw_noise(len(prompts), generator), prompts, None)

    def rollout_from(
        self, noise: Tensor, prompts: Sequence[str], *, grad_from: int, checkpoint: bool = False
    ) -> Trajectory:
        return self._chains(noise, prompts, grad_from)

    def _chains(self, noise: Tensor, prompts: Sequence[str], grad_from: int | None) -> Trajectory:
        x = noise[0]
        latents, log_probs = [x], []
        for i in range(self.num_steps):
            steps = torch.full((len(prompts),), i)
            with torch.set_grad_enabled(grad_from is not None and i >= grad_from):
                step = self.transition(x, steps, prompts)
                x = step.sample(noise[i + 1])
            log_probs.append(step.log_prob(x).detach())
            latents.append(x.detach())
        timesteps = torch.arange(self.num_steps).flip(0)
        return Trajectory(tuple(prompts), torch.stack(latents, 1), timesteps, torch.stack(log_probs, 1), self.decode(x))


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
    """Wraps a method and keeps what it was called with."""

    def __init__(self, owner: Any, name: str) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._method = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any) -> Any:
        self.calls.append(tuple(a.detach().clone() if isinstance(a, Tensor) else a for a in args))
        return self._method(*args)

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
