"""Denoising chains step by step, for whoever keeps all of a chain and for whoever wants its image alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from overopt_bench.types.transition import Transition


class Link(NamedTuple):
    """One step of B chains: its Gaussian, what was sampled from it ``[B, C, h, w]``, and its KL ``[B]`` if asked."""

    transition: Transition
    x_next: Tensor
    kl: Tensor | None


class Chains(NamedTuple):
    """Whole chains of B images.

    Attributes:
        last: ``[B, C, h, w]`` the clean latents, with their graph.
        latents: ``[B, T+1, C, h, w]`` detached.
        log_probs: ``[B, T]`` detached; NaN at deterministic steps, which have no density.
        kl: ``[B, T]`` where it was asked for.
        means: ``[B, T, C, h, w]`` of each step's Gaussian, detached, where they were asked for.
    """

    last: Tensor
    latents: Tensor
    log_probs: Tensor
    kl: Tensor | None
    means: Tensor | None


def collect(start: Tensor, links: Iterator[Link], *, with_means: bool = False) -> Chains:
    """Walk to the end of the chains that begin at ``start`` ``[B, C, h, w]``, and keep all of them."""
    x, latents, log_probs, kl, means = start, [start], [], [], []
    for step, x, own_kl in links:
        with torch.no_grad():
            log_probs.append(step.log_prob(x) if step.noisy else x.new_full((len(x),), torch.nan))
        latents.append(x.detach())
        kl += [] if own_kl is None else [own_kl]
        means += [step.mean.detach()] if with_means else []
    kept = (torch.stack(each, 1) if each else None for each in (kl, means))
    return Chains(x, torch.stack(latents, 1), torch.stack(log_probs, 1), *kept)


def walk(
    noise: Tensor, etas: list[float], transition: Callable[[Tensor, Tensor], Transition],
    base: Callable[[], AbstractContextManager[None]], *, grad_from: int | None = None, with_kl: bool = False,
    start: Transition | None = None,
) -> Iterator[Link]:  # fmt: skip
    """Sample chains from given noise, a step at a time; nothing of the steps before is kept here.

    Args:
        noise: ``[T+1, B, C, h, w]`` on the network's device.
        etas: of the T steps; one with 0 has no KL, which is NaN there.
        transition: gives p(x_{i+1} | x_i) of latents ``[B, C, h, w]`` at steps ``[B]``.
        base: inside, ``transition`` is the base model's.
        grad_from: first step with a graph; None for none.
        with_kl: also give the KL to the base model, at the price of a pass of it a step.
        start: the base model's first step, where it is known already.
    """
    x = noise[0]
    for i, eta in enumerate(etas):
        steps = torch.full((len(x),), i, device=x.device)
        kl = x.new_full((len(x),), torch.nan) if with_kl else None
        with torch.set_grad_enabled(grad_from is not None and i >= grad_from):
            step = replace(transition(x, steps), noisy=eta > 0)
            x_next = step.sample(noise[i + 1])
            if with_kl and eta > 0:
                with base():
                    kl = step.kl(start if start is not None and i == 0 else transition(x, steps))
        yield Link(step, x_next, kl)
        x = x_next
