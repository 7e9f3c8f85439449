"""What the passes of a Stable Diffusion cost, from its configs alone: on torch's meta device, without weights.

FLOPs count a multiply-add as 2. Bytes are those of tensors as ``DiffusionPolicy`` runs the passes: frozen weights in the
run's precision under CUDA's autocast rules, float32 LoRA, fused attention, channels-last. What they leave out: the
workspaces of kernels, the CUDA context (about 0.5 GB) and the allocator's fragmentation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from overopt_bench.sizing.flops import build_unet, build_vae, measure, unet_inputs
from overopt_bench.types import ImageCost

PASSES = ((False, False), (True, False), (True, True))  # (graph, checkpointed)


@dataclass(frozen=True)
class Costs:
    """The costs of one U-Net pass on one latent (guidance doubles it) and of one decoded image.

    ``*_flops``: backward passes come without the forward pass, and with what they recompute where ``checkpointed``.
    ``train_bytes`` and ``decode_bytes`` are saved for the backward pass; ``*_peak_bytes``, ``sample_bytes`` and all
    ``*_checkpointed`` are the most that is alive at once from the first operation to the last, what is saved included.
    ``chain_*`` are those of a pass that a chain's backward pass repeats as a whole, from its input, and of XL block by
    block besides, as ``DiffusionPolicy`` does.
    """

    unet_parameters: int
    vae_parameters: int
    text_parameters: int
    weight_bytes: int
    unet_flops: float
    unet_backward_flops: float
    unet_backward_flops_checkpointed: float
    decode_flops: float
    decode_backward_flops: float
    decode_backward_flops_checkpointed: float
    sample_bytes: int
    train_bytes: int
    train_peak_bytes: int
    train_bytes_checkpointed: int
    decode_sample_bytes: int
    decode_bytes: int
    decode_peak_bytes: int
    decode_bytes_checkpointed: int
    chain_backward_flops_checkpointed: float
    chain_bytes_checkpointed: int


def costs(
    unet_config: Mapping[str, Any], vae_config: Mapping[str, Any], dtype: torch.dtype, text_parameters: int = 0
) -> Costs:
    """Compute the costs of the architecture that two diffusers configs describe, in the run's precision.

    It takes some seconds and is then remembered.
    """
    return _costs(json.dumps([dict(unet_config), dict(vae_config)], sort_keys=True), dtype, text_parameters)


@lru_cache
def _costs(configs: str, dtype: torch.dtype, text_parameters: int) -> Costs:
    unet_config, vae_config = json.loads(configs)
    is_xl = unet_config.get("addition_embed_type") == "text_time"
    vae_dtype = torch.float32 if is_xl and dtype == torch.float16 else dtype  # as in DiffusionPolicy
    unet, vae = build_unet(unet_config, dtype), build_vae(vae_config, vae_dtype)
    unet_parameters, vae_parameters = (
        sum(p.numel() for p in module.parameters() if not p.requires_grad) for module in (unet, vae)
    )
    inputs = unet_inputs(unet.config)
    forward = [measure(unet, unet, inputs, dtype, graph=g, checkpointed=c) for g, c in PASSES]
    latents = (inputs[0].to(vae_dtype).requires_grad_(),)
    decode = [measure(vae, vae.decode, latents, torch.float32, graph=g, checkpointed=c) for g, c in PASSES]
    chain = forward[2] if is_xl else forward[1]
    return Costs(
        unet_parameters, vae_parameters, text_parameters,
        (unet_parameters + text_parameters) * dtype.itemsize + vae_parameters * vae_dtype.itemsize,
        forward[0].flops, forward[1].backward_flops, forward[2].backward_flops,
        decode[0].flops, decode[1].backward_flops, decode[2].backward_flops,
        forward[0].peak, forward[1].saved, forward[1].peak, forward[2].peak,
        decode[0].peak, decode[1].saved, decode[1].peak, decode[2].peak,
        chain.backward_flops + forward[0].flops, chain.peak,
    )  # fmt: skip


def run_flops(
    costs: Costs,
    image: ImageCost,
    *,
    queries: int,
    num_steps: int,
    guided: bool,
    checkpointed: bool = False,
    encoder_flops: float = 0.0,
    reward_flops: float = 0.0,
) -> float:
    """Compute the FLOPs of a run, without its evaluations.

    Args:
        costs: of the architecture.
        image: what the algorithm computes for each image beside drawing, decoding and scoring it.
        queries: images shown to the proxy.
        num_steps: T, the denoising steps of a chain.
        guided: whether classifier-free guidance doubles each pass of the U-Net.
        checkpointed: whether activations are recomputed.
        encoder_flops: of one image through the encoder of critics.
        reward_flops: per image, all passes of the proxy.
    """
    width = 2 if guided else 1
    backward = costs.unet_backward_flops_checkpointed if checkpointed else costs.unet_backward_flops
    each = num_steps * width * costs.unet_flops + costs.decode_flops + reward_flops
    each += image.predicted * width * costs.unet_flops
    each += image.trained * width * (costs.unet_flops + backward)
    each += image.encoded * (costs.decode_flops + encoder_flops)
    if image.backpropagated:
        backward = costs.chain_backward_flops_checkpointed if checkpointed else costs.unet_backward_flops
        each += image.backpropagated * width * backward
        each += costs.decode_backward_flops_checkpointed if checkpointed else costs.decode_backward_flops
    return queries * each
