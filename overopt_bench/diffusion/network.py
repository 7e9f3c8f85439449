"""A U-Net with a LoRA adapter and guidance: from latents, timesteps and prompts to one output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from overopt_bench.compute.compiling import compiled
from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import ATTENTION, Runtime
from overopt_bench.diffusion.adapter import LORA_TARGETS
from overopt_bench.diffusion.copies import Copies
from overopt_bench.diffusion.prompts import Conditioning, PromptEncoder
from overopt_bench.errors import UserError


class Network:
    """A frozen U-Net with a trained adapter, guided: eps_u + w (eps_c - eps_u).

    Args:
        unet: without an adapter, on its device; it gets one.
        encode: what gives the embeddings of prompts.
        guidance_scale: w; 1 uses the prompt alone.
        dtype: of the passes; the output is float32.
        runtime: compilation and attention.
        world: whose ``check_stop`` is called before each pass.

    Attributes:
        copies: the adapter's weights and frozen copies of them.
        nfe: passes so far, one per latent and per guidance branch.
    """

    def __init__(
        self, unet: Any, encode: PromptEncoder, *, guidance_scale: float, dtype: torch.dtype, runtime: Runtime, world: World
    ) -> None:  # fmt: skip
        self.unet, self.encode, self.guidance_scale, self.dtype, self.world = unet, encode, guidance_scale, dtype, world
        self.nfe = 0
        self.copies = Copies(unet)
        set_attention(unet, runtime.attention)
        self.forward: Any = compiled(unet) if runtime.compile else unet
        # a compiled graph takes its weights as inputs, so that what it computes again has the right ones by itself
        self._again: Any = partial(checkpoint, use_reentrant=False) if runtime.compile else self._recomputed
        self._by_block = False

    def condition(self, prompts: Sequence[str]) -> Conditioning:
        """Encode B prompts for any number of passes: ``[B, L, D]``, or ``[2 B, L, D]`` with guidance's empty prompts first."""
        context = self.encode(prompts)
        if self.guidance_scale != 1:
            context = Conditioning.cat([self.encode.unconditional(len(prompts)), context])
        return context

    def __call__(
        self, latents: Tensor, timesteps: Tensor, context: Conditioning, *, whole: bool = False, blocks: bool = False
    ) -> Tensor:
        """Give the guided output ``[B, C, h, w]`` float32, with a graph when gradients are enabled.

        The schedule says what it is: noise, velocity or image. Guidance is the same for all of them, for at one x they
        are linear in each other.

        Args:
            latents: ``[B, C, h, w]``.
            timesteps: ``[B]`` int64 training timesteps, one a sample.
            context: of B prompts, as ``condition`` gives it.
            whole: keep only the inputs of the whole pass for the backward pass, which computes the rest again. It suits
                chains, of which only one pass is then held at a time.
            blocks: keep only the inputs of each block of the U-Net: less than a single pass holds.
        """
        self.world.check_stop()
        x, t, w = latents, timesteps, self.guidance_scale
        if w != 1:  # one pass of 2 B: [unconditional, conditional]
            x, t = torch.cat([x, x]), torch.cat([t, t])
        self.nfe += len(x)
        x = x.to(memory_format=torch.channels_last)
        if graph := torch.is_grad_enabled():
            self.recompute_blocks(blocks)
        out = self._recomputed(self._pass, x, t, context) if whole and graph else self._pass(x, t, context)
        if w != 1:
            unconditional, conditional = out.chunk(2)
            out = unconditional + w * (conditional - unconditional)
        return torch.as_tensor(out)

    def _pass(self, x: Tensor, t: Tensor, context: Conditioning) -> Tensor:
        with self._autocast(x.device):
            out = self.forward(x, t, context.embeds, added_cond_kwargs=context.added, return_dict=False)[0]
        return torch.as_tensor(out.float())

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype == torch.float32 else torch.autocast(device.type, self.dtype)

    def _recomputed(self, call: Callable[..., Any], *inputs: Any) -> Any:
        """Run ``call`` and keep only its inputs; what the backward pass computes again is done as it is done now."""
        worn, blocks = self.copies.worn, self._by_block

        def run(*inputs: Any) -> Any:
            self.recompute_blocks(blocks)
            with self.copies.wearing(worn):
                return call(*inputs)

        # without the generators' states, which cost a synchronisation on a GPU: nothing in these passes is random
        return checkpoint(run, *inputs, use_reentrant=False, preserve_rng_state=False)

    def recompute_blocks(self, on: bool) -> None:
        """Keep only the inputs of the U-Net's blocks in passes with a graph from now on, or all activations."""
        if on is self._by_block:
            return
        self._by_block = on
        if on:
            self.unet.enable_gradient_checkpointing(self._again)
        else:
            self.unet.disable_gradient_checkpointing()


def add_adapter(unet: Any, *, rank: int, alpha: int, seed: int) -> None:
    """Add a float32 LoRA of zero effect to a U-Net.

    Args:
        unet: diffusers' U-Net.
        rank: of the LoRA.
        alpha: of the LoRA; its scale is alpha / rank.
        seed: of its initial weights; no other generator is touched.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(LORA_TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(config)
    for p in unet.parameters():
        if p.requires_grad:
            p.data = p.data.float()


def set_attention(unet: Any, kind: str | None) -> None:
    """Choose the implementation of attention; U-Nets of diffusers take a processor, not one of its dispatched backends.

    Args:
        unet: diffusers' U-Net.
        kind: one of ``ATTENTION``, or None for diffusers' choice.

    Raises:
        UserError: where its package is missing.
    """
    from diffusers.models import attention_processor

    if kind is None:
        return
    if kind == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise UserError(f"--attention xformers: {error}") from None
    else:
        unet.set_attn_processor(getattr(attention_processor, ATTENTION[kind])())
