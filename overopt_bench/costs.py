"""What the passes of a Stable Diffusion cost, from its configs alone: on torch's meta device, without weights.

FLOPs count a multiply-add as 2. Bytes are those of tensors as ``DiffusionPolicy`` runs the passes: frozen weights in the
run's precision under CUDA's autocast rules, float32 LoRA, fused attention, channels-last. What they leave out: the
workspaces of kernels, the CUDA context (about 0.5 GB) and the allocator's fragmentation.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from overopt_bench.errors import unknown_name
from overopt_bench.policy import LORA_TARGETS

TOKENS, TIME_IDS = 77, 6  # CLIP's context length; XL's sizes and crops
HALF_OPS = (F.linear, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention)
FLOAT_OPS = (F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax)


class Architecture(NamedTuple):
    """Configs as ``unet/config.json`` and ``vae/config.json`` have them, less diffusers' defaults."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_parameters: int


_VAE = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4,
}  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {
    "sd1": Architecture(
        {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
        _VAE,
        123_060_480,  # CLIP ViT-L/14
    ),
    "sdxl": Architecture(
        {
            "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
            "sample_size": 128, "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
            "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        },
        _VAE,
        123_060_480 + 694_659_840,  # and OpenCLIP ViT-bigG/14 with its projection
    ),
}  # fmt: skip


PASSES = ((False, False), (True, False), (True, True))  # (graph, checkpointed)


@dataclass(frozen=True)
class Costs:
    """Of one U-Net pass on one latent (guidance doubles it) and of one decoded image.

    ``*_flops``: backward passes come without the forward pass, and with what they recompute where ``checkpointed``.
    ``train_bytes`` and ``decode_bytes`` are saved for the backward pass; ``*_peak_bytes``, ``sample_bytes`` and all
    ``*_checkpointed`` are the most that is alive at once from the first operation to the last, what is saved included.
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


def costs(
    unet_config: Mapping[str, Any], vae_config: Mapping[str, Any], dtype: torch.dtype, text_parameters: int = 0
) -> Costs:
    """Of the architecture that two diffusers configs describe, in the run's precision; some seconds, then remembered."""
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
    return Costs(
        unet_parameters, vae_parameters, text_parameters,
        (unet_parameters + text_parameters) * dtype.itemsize + vae_parameters * vae_dtype.itemsize,
        forward[0].flops, forward[1].backward_flops, forward[2].backward_flops,
        decode[0].flops, decode[1].backward_flops, decode[2].backward_flops,
        forward[0].peak, forward[1].saved, forward[1].peak, forward[2].peak,
        decode[0].peak, decode[1].saved, decode[1].peak, decode[2].peak,
    )  # fmt: skip


def run_flops(
    costs: Costs,
    algo: str,
    *,
    queries: int,
    num_steps: int,
    guided: bool,
    trained_steps: float | None = None,
    inner_epochs: int = 1,
    checkpointed: bool = False,
    encoder_flops: float = 0.0,
    reward_flops: float = 0.0,
) -> float:
    """FLOPs of a run, without its evaluations.

    Args:
        queries: images shown to the proxy. num_steps: T. guided: two U-Net passes per step.
        trained_steps: per image, those with a backward pass; None: T, or AlignProp's mean (T + 1) / 2 of a uniform K.
        inner_epochs: of DDPO. checkpointed: the algorithm's parameter; AlignProp then also repeats the whole pass.
        encoder_flops: TDPO's, per decoded latent. reward_flops: per image, all its passes.

    Raises:
        UserError: for an algorithm that is not known here.
    """
    known = ("base", "best_of_n", "ddpo", "tdpo", "tdpo_r", "alignprop")
    if algo not in known:
        raise unknown_name("algorithm", algo, known)
    width, alignprop = (2 if guided else 1), algo == "alignprop"
    image = num_steps * width * costs.unet_flops + costs.decode_flops + reward_flops
    trained = trained_steps or ((num_steps + 1) / 2 if alignprop else num_steps)
    backward = costs.unet_backward_flops_checkpointed if checkpointed else costs.unet_backward_flops
    if alignprop:
        decode = costs.decode_backward_flops_checkpointed if checkpointed else costs.decode_backward_flops
        image += trained * width * (backward + checkpointed * costs.unet_flops) + decode
    elif algo in ("ddpo", "tdpo", "tdpo_r"):
        image += inner_epochs * trained * width * (costs.unet_flops + backward)
        image += trained * (costs.decode_flops + encoder_flops) if algo != "ddpo" else 0.0
    return queries * image


class Measured(NamedTuple):
    """FLOPs and bytes of one forward pass and, where it has a graph, its backward pass."""

    flops: float
    backward_flops: float
    saved: int
    peak: int


def build_unet(config: Mapping[str, Any], dtype: torch.dtype, rank: int = 4, device: str = "meta") -> Any:
    """A U-Net as ``DiffusionPolicy`` holds it: frozen in ``dtype``, channels last, with a float32 adapter."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    with torch.device(device):
        unet = UNet2DConditionModel.from_config(dict(config)).requires_grad_(False).eval()
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)))
    for p in unet.parameters():
        layout = torch.channels_last if p.dim() == 4 else torch.preserve_format
        p.data = p.data.to(torch.float32 if p.requires_grad else dtype, memory_format=layout)
    return unet


def build_vae(config: Mapping[str, Any], dtype: torch.dtype, device: str = "meta") -> Any:
    """A frozen VAE in ``dtype``."""
    from diffusers import AutoencoderKL

    with torch.device(device):
        vae = AutoencoderKL.from_config(dict(config)).requires_grad_(False).eval()
    for p in vae.parameters():
        p.data = p.data.to(dtype)
    return vae


def unet_inputs(config: Any, batch: int = 1, device: str = "meta") -> tuple[Any, ...]:
    """Positional arguments of a U-Net's pass: float32 latents, times, embeddings and, for XL, the added conditions."""
    make = partial(torch.zeros, device=device)
    x = make(batch, config.in_channels, config.sample_size, config.sample_size).to(memory_format=torch.channels_last)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - TIME_IDS * config.addition_time_embed_dim
        added = {"text_embeds": make(batch, pooled), "time_ids": make(batch, TIME_IDS)}
    context = make(batch, TOKENS, config.cross_attention_dim)
    return x, make(batch, dtype=torch.long), context, None, None, None, None, added


def measure(
    module: Any, call: Callable[..., Any], inputs: Iterable[Any], autocast: torch.dtype, *, graph: bool, checkpointed: bool
) -> Measured:  # fmt: skip
    """One pass of ``call``, a method of ``module``; autocast float32 is none. Bytes leave out parameters and inputs."""
    module.disable_gradient_checkpointing()
    if checkpointed:
        again = partial(
            checkpoint, use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), _Ops(autocast))
        )  # fmt: skip
        module.enable_gradient_checkpointing(lambda block, *args: again(block.__call__, *args))
    known = {p.untyped_storage()._cdata for p in module.parameters()}
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes()
        return t

    hooks: AbstractContextManager[Any] = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with torch.set_grad_enabled(graph), _Meter() as meter:
        with _Ops(autocast), hooks if graph and not checkpointed else nullcontext():
            out = call(*inputs)[0]
        forward = meter.flops
        if graph:
            out.backward(torch.empty_like(out))
    for p in module.parameters():
        p.grad = None
    return Measured(forward, meter.flops - forward, sum(saved.values()), meter.peak)


class _Ops(TorchFunctionMode):
    """CUDA's autocast rules for the operations of these networks, and fused attention, on the meta device.

    Meta tensors know no autocast, and their ``scaled_dot_product_attention`` is the unfused one, which saves T x T.
    """

    def __init__(self, autocast: torch.dtype) -> None:
        super().__init__()
        self.autocast = autocast

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.autocast != torch.float32 and func in (*HALF_OPS, *FLOAT_OPS):
            dtype = self.autocast if func in HALF_OPS else torch.float32
            args, kwargs = [_to(a, dtype) for a in args], {k: _to(v, dtype) for k, v in kwargs.items()}
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    if query.device.type == "cpu":
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False, False)[0]


def _to(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class _Meter(TorchDispatchMode):
    """FLOPs, and the most bytes of storages made here that were alive at once.

    ``FlopCounterMode`` counts the same, but keeps what checkpointed modules recompute alive.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0
        self.now = self.peak = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        given = {s._cdata for s in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given | self.alive:
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, key: int, nbytes: int) -> None:
        self.alive.discard(key)
        self.now -= nbytes


def _storages(values: Any) -> list[Any]:
    return [x.untyped_storage() for x in tree_leaves(values) if isinstance(x, Tensor)]
