"""FLOPs and bytes of one pass of a network, counted on torch's meta device: no weights, no arithmetic."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from overopt_bench.diffusion.adapter import LORA_TARGETS

TOKENS, TIME_IDS = 77, 6  # CLIP's context length; XL's sizes and crops
HALF_OPS = (F.linear, torch.conv2d, torch.matmul, torch.bmm, torch.baddbmm, F.scaled_dot_product_attention)
FLOAT_OPS = (F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax)


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
