"""Images that the judge and the raters see: base samples, worse samplers, mixtures, and corruptions of known severity."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from overopt_bench.diffusion.ddim import ddim_transition


class Sampler:
    """The base pipeline as a function from prompts to images, with the knobs that the pools need."""

    def __init__(self, pipeline: Any, tokens: Callable[[Sequence[str]], Tensor], num_steps: int) -> None:
        self.pipe, self.num_steps = pipeline, num_steps
        self.tokens = tokens
        pipeline.scheduler.set_timesteps(num_steps)
        self.timesteps = pipeline.scheduler.timesteps

    def worse(self, sigma: float, generator: Generator) -> Sampler:
        """The same sampler with Gaussian noise of relative size sigma on every U-Net weight."""
        pipe = copy.copy(self.pipe)
        pipe.unet = copy.deepcopy(self.pipe.unet)
        for p in pipe.unet.parameters():
            spread = p.std() if p.numel() > 1 else p.abs().mean()
            p.data += sigma * spread * torch.randn(p.shape, generator=generator)
        return Sampler(pipe, self.tokens, self.num_steps)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], generator: Generator, *, guidance: float, init: Tensor | None = None,
        start: int = 0, eta: float = 1.0, batch: int = 64,
    ) -> Tensor:  # fmt: skip
        """Images ``[N, 3, 32, 32]`` in [0, 1]. ``init`` ``[N, 4, 8, 8]`` re-noised to step ``start`` gives SDEdit."""
        images = []
        for lo in range(0, len(prompts), batch):
            part = list(prompts[lo : lo + batch])
            cond = self.pipe.text_encoder(self.tokens(part)).last_hidden_state
            if guidance != 1:
                empty = self.pipe.text_encoder(self.tokens([""])).last_hidden_state.expand_as(cond)
                cond = torch.cat([empty, cond])
            x = torch.randn((len(part), 4, 8, 8), generator=generator)
            if init is not None:
                a = self.pipe.scheduler.alphas_cumprod[self.timesteps[start]]
                x = a.sqrt() * init[lo : lo + batch] + (1 - a).sqrt() * x
            for i in range(start, self.num_steps):
                x = self._step(x, i, cond, guidance, eta, generator)
            decoded = self.pipe.vae.decode(x / self.pipe.vae.config.scaling_factor).sample
            images.append((decoded / 2 + 0.5).clamp(0, 1))
        return torch.cat(images)

    def _step(self, x: Tensor, i: int, context: Tensor, guidance: float, eta: float, generator: Generator) -> Tensor:
        t, alphas = self.timesteps[i], self.pipe.scheduler.alphas_cumprod
        before = max(int(t) - 1000 // self.num_steps, 0)
        if guidance == 1:
            eps = self.pipe.unet(x, t, context).sample
        else:
            uncond, cond = self.pipe.unet(torch.cat([x, x]), t, context).sample.chunk(2)
            eps = uncond + guidance * (cond - uncond)
        step = ddim_transition(x, eps, alphas[t].view(1), alphas[before].view(1), eta)
        return step.sample(torch.randn(x.shape, generator=generator))


def _blur(x: Tensor, s: Tensor) -> Tensor:
    radius = torch.arange(-4, 5).float()
    kernel = torch.exp(-0.5 * (radius / (0.2 + 2.5 * s.view(-1, 1))) ** 2)  # [B, 9]
    kernel = kernel / kernel.sum(1, keepdim=True)
    b = len(x)
    rows = F.pad(x, (4, 4, 4, 4), mode="replicate").transpose(0, 1)  # [3, B, H, W]: one kernel per sample
    rows = F.conv2d(rows, kernel.view(b, 1, 1, 9), groups=b)
    return F.conv2d(rows, kernel.view(b, 1, 9, 1), groups=b).transpose(0, 1)


def _tint(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    colour = torch.rand((len(x), 3, 1, 1), generator=g)
    return x + (colour - x) * 0.8 * s


def _mix_channels(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    matrix = torch.eye(3) + 1.2 * s.view(-1, 1, 1) * torch.randn((len(x), 3, 3), generator=g) * 0.5
    return torch.einsum("bij,bjhw->bihw", matrix, x - 1) + 1


def _waves(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    k = torch.randn((len(x), 3, 2), generator=g) * 1.5
    grid = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    phase = torch.rand((len(x), 3, 1, 1), generator=g) * 6.3
    return x + 0.7 * s * torch.sin(torch.einsum("bck,khw->bchw", k, grid) + phase)


def _warp(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    coarse = torch.randn((len(x), 2, 5, 5), generator=g) * 0.35 * s
    flow = F.interpolate(coarse, size=(32, 32), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = F.affine_grid(torch.eye(2, 3).expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return 1 - F.grid_sample(1 - x, identity + flow, align_corners=False)


def _blobs(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    noise = F.interpolate(torch.rand((len(x), 3, 6, 6), generator=g), size=(32, 32), mode="bicubic")
    mask = F.interpolate(torch.rand((len(x), 1, 5, 5), generator=g), size=(32, 32), mode="bilinear")
    return torch.where(mask < 0.8 * s, noise, x)


def _shuffle(x: Tensor, s: Tensor, g: Generator) -> Tensor:
    tiles = x.unfold(2, 8, 8).unfold(3, 8, 8).reshape(len(x), 3, 16, 8, 8)
    out = tiles.clone()
    for b in range(len(x)):
        moved = torch.nonzero(torch.rand(16, generator=g) < s[b].flatten()[0]).flatten()
        out[b, :, moved] = tiles[b][:, moved[torch.randperm(len(moved), generator=g)]]
    return out.reshape(len(x), 3, 4, 4, 8, 8).permute(0, 1, 2, 4, 3, 5).reshape(x.shape)


CORRUPTIONS: dict[str, Callable[[Tensor, Tensor, Generator], Tensor]] = {
    "noise": lambda x, s, g: x + 0.6 * s * torch.randn(x.shape, generator=g),
    "blur": lambda x, s, g: _blur(x, s),
    "tint": _tint,
    "channels": _mix_channels,
    "waves": _waves,
    "warp": _warp,
    "blobs": _blobs,
    "tiles": _shuffle,
    "fade": lambda x, s, g: 1 - (1 - x) * (1 - 0.95 * s),
    "saturate": lambda x, s, g: (
        (x.mean(1, keepdim=True) + (x - x.mean(1, keepdim=True)) * (1 + 4 * s) - 0.5) * (1 + s) + 0.5
    ),
    "grey": lambda x, s, g: x + (x.mean(1, keepdim=True) - x) * s,
}


def corrupt(images: Tensor, severity: Tensor, kind: str, generator: Generator) -> Tensor:
    """Images ``[B, 3, 32, 32]`` spoilt by severity ``[B]`` in [0, 1]: 0 leaves them, 1 leaves little."""
    return CORRUPTIONS[kind](images, severity.view(-1, 1, 1, 1), generator).clamp(0, 1)
