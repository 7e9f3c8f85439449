"""Costs on the meta device against real tensors, hand counts, and torch's own counter and autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from toy_policy import ToyPolicy, context

from overopt_bench.algorithms.alignprop import AlignProp
from overopt_bench.registry import algorithms
from overopt_bench.sizing import flops as module
from overopt_bench.sizing.costs import Costs, costs, run_flops
from overopt_bench.sizing.flops import build_unet, build_vae, measure, unet_inputs
from overopt_bench.suites.architectures import ARCHITECTURES
from overopt_bench.types import ImageCost

TINY = {
    "block_out_channels": [32, 64], "cross_attention_dim": 48, "attention_head_dim": 8, "sample_size": 16,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
}  # fmt: skip
TINY_XL = {
    **TINY, "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64,
}  # fmt: skip
TINY_VAE = {
    "block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4,
}  # fmt: skip
FLASH_SEEDS = 24  # bytes of random state that the GPU's kernel saves and the CPU's does not


def tiny(dtype: torch.dtype, device: str, checkpointed: bool = False) -> module.Measured:
    # plain layout: group_norm keeps channels last on a CPU, and copies it everywhere else
    unet = build_unet(TINY, dtype, device=device).to(memory_format=torch.contiguous_format)
    x, *rest = unet_inputs(unet.config, 2, device)
    return measure(unet, unet, (x.contiguous(), *rest), dtype, graph=True, checkpointed=checkpointed)


def attentions(unet: nn.Module) -> list[Attention]:
    return [m for m in unet.modules() if isinstance(m, Attention)]


@pytest.fixture(scope="module")
def sd1() -> Costs:
    return costs(*ARCHITECTURES["sd1"][:2], torch.float16, ARCHITECTURES["sd1"].text_parameters)


@pytest.mark.parametrize(("name", "parameters"), [("sd1", 859_520_964), ("sdxl", 2_567_463_684)])
def test_architectures_have_the_published_parameter_counts(name: str, parameters: int) -> None:
    unet = build_unet(ARCHITECTURES[name].unet, torch.float16)
    vae = build_vae(ARCHITECTURES[name].vae, torch.float16)
    assert sum(p.numel() for p in unet.parameters() if not p.requires_grad) == parameters
    assert sum(p.numel() for p in vae.parameters()) == 83_653_863


def test_unet_flops_are_those_of_its_layers_counted_by_hand(sd1: Costs) -> None:
    unet = build_unet(ARCHITECTURES["sd1"].unet, torch.float32)
    base, adapter, attention = [0], [0], [0]

    def layer(m: Any, args: tuple[Tensor, ...], out: Tensor) -> None:
        per_output = m.in_features if isinstance(m, nn.Linear) else m.in_channels * m.kernel_size[0] * m.kernel_size[1]
        (adapter if m.weight.requires_grad else base)[0] += 2 * out.numel() * per_output

    def attend(m: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        context = kwargs["encoder_hidden_states"] if kwargs.get("encoder_hidden_states") is not None else args[0]
        attention[0] += 4 * args[0].shape[1] * context.shape[1] * args[0].shape[2]

    for m in unet.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)) and not isinstance(m, LoraLayer):
            m.register_forward_hook(layer)
        elif isinstance(m, Attention):
            m.register_forward_hook(attend, with_kwargs=True)
    measure(unet, unet, unet_inputs(unet.config), torch.float32, graph=False, checkpointed=False)
    assert sd1.unet_flops == base[0] + adapter[0] + attention[0]
    # published, without attention's products: 338.749 G multiply-adds for the U-Net, 1240.08 G for the decoder (thop's
    # count, https://github.com/Nota-NetsPresso/BK-SDM/issues/53); the decoder has one attention, 64 x 64, 512 channels
    assert base[0] / 2 == pytest.approx(338_749_194_240, rel=0.01)
    assert sd1.decode_flops - 4 * 4096**2 * 512 == pytest.approx(2 * 1_240_079_532_032, rel=0.01)


def test_flops_are_those_of_torchs_counter() -> None:
    unet = build_unet(TINY, torch.float32)
    inputs = unet_inputs(unet.config)
    with FlopCounterMode(display=False) as counter:
        ours = measure(unet, unet, inputs, torch.float32, graph=True, checkpointed=False)
    assert ours.flops + ours.backward_flops == counter.get_total_flops()


def test_costs_grow_linearly_with_the_batch() -> None:
    unet = build_unet(TINY, torch.float16)
    one, two, three = (
        measure(unet, unet, unet_inputs(unet.config, n), torch.float16, graph=True, checkpointed=False)
        for n in (1, 2, 3)
    )
    assert two.flops == 2 * one.flops
    assert two.saved - one.saved == three.saved - two.saved > 0.9 * one.saved  # the rest: weights cast, per pass


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_bytes_on_meta_are_those_of_real_tensors(dtype: torch.dtype) -> None:
    seeds = FLASH_SEEDS * len(attentions(build_unet(TINY, dtype)))
    assert tiny(dtype, "meta").saved - seeds == tiny(dtype, "cpu").saved


@pytest.mark.parametrize("checkpointed", [False, True])
def test_peaks_on_meta_are_those_of_real_tensors(checkpointed: bool) -> None:
    real, meta = (tiny(torch.float32, device, checkpointed).peak for device in ("cpu", "meta"))
    assert meta == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_follows_cudas_own_autocast(dtype: torch.dtype) -> None:
    """Torch's fake CUDA tensors dispatch like real ones (forward passes only, where there is no GPU)."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours = build_unet(TINY, dtype)
    expected = measure(ours, ours, unet_inputs(ours.config), dtype, graph=True, checkpointed=False)
    saved: dict[int, int] = {}
    with FakeTensorMode():
        unet = build_unet(TINY, dtype)
        for part in unet.modules():
            for name, p in part._parameters.items():
                if p is not None:
                    fake = torch.empty_strided(p.shape, p.stride(), dtype=p.dtype, device="cuda")
                    part._parameters[name] = nn.Parameter(fake, requires_grad=p.requires_grad)
        inputs = unet_inputs(unet.config, device="cuda")
        known = {p.untyped_storage()._cdata for p in unet.parameters()}

        def pack(t: Tensor) -> Tensor:
            saved[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
            return t

        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", True)
        torch.set_autocast_dtype("cuda", dtype)
        try:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), module._Ops(torch.float32):
                out = unet(*inputs)[0]
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            torch.clear_autocast_cache()
    assert out.dtype == dtype
    assert sum(n for key, n in saved.items() if key not in known) == expected.saved


def test_precision_and_checkpoints_save_memory(sd1: Costs) -> None:
    full = costs(*ARCHITECTURES["sd1"][:2], torch.float32)
    assert sd1.decode_bytes == pytest.approx(full.decode_bytes / 2, rel=0.01)
    # autocast keeps norms, and what they save, in float32: more than half remains
    assert full.train_bytes / 2 < sd1.train_bytes < 0.75 * full.train_bytes
    for c in (sd1, full):
        assert c.sample_bytes < c.train_bytes_checkpointed < 0.4 * c.train_bytes < c.train_bytes < c.train_peak_bytes
        assert c.decode_bytes_checkpointed < c.decode_bytes < c.decode_peak_bytes
        assert c.unet_flops < c.unet_backward_flops < c.unet_backward_flops_checkpointed
    assert (sd1.unet_flops, sd1.text_parameters) == (full.unet_flops, 123_060_480)


def test_xls_vae_stays_in_float32_where_the_run_is_in_float16() -> None:
    xl, plain = costs(TINY_XL, TINY_VAE, torch.float16), costs(TINY, TINY_VAE, torch.float16)
    assert xl.decode_bytes == pytest.approx(2 * plain.decode_bytes, rel=0.01)
    assert xl.weight_bytes == 2 * xl.unet_parameters + 4 * xl.vae_parameters


def test_a_chain_repeats_whole_passes_and_xls_block_by_block() -> None:
    xl, plain = costs(TINY_XL, TINY_VAE, torch.float16), costs(TINY, TINY_VAE, torch.float16)
    assert plain.chain_bytes_checkpointed == plain.train_peak_bytes > plain.train_bytes_checkpointed
    assert xl.chain_bytes_checkpointed == xl.train_bytes_checkpointed < xl.train_peak_bytes
    for c, backward in ((plain, plain.unet_backward_flops), (xl, xl.unet_backward_flops_checkpointed)):
        assert c.chain_backward_flops_checkpointed == backward + c.unet_flops


def test_flops_of_runs_add_up(sd1: Costs) -> None:
    def flops(algo: str, params: dict[str, Any] | None = None, **kwargs: Any) -> float:
        cls = algorithms.get(algo)
        image = cls.cost(cls.Params(**params or {}), 50)
        return run_flops(sd1, image, **{"queries": 10, "num_steps": 50, "guided": True, **kwargs})

    forward, backward = sd1.unet_flops, sd1.unet_backward_flops
    assert flops("base") == flops("best_of_n") == pytest.approx(10 * (100 * forward + sd1.decode_flops))
    assert flops("ddpo") - flops("base") == pytest.approx(10 * 100 * (forward + backward))
    assert flops("ddpo", {"inner_epochs": 2}) - flops("ddpo") == pytest.approx(10 * 100 * (forward + backward))
    assert flops("ddpo", {"skip_last_steps": 10}) - flops("base") == pytest.approx(10 * 80 * (forward + backward))
    assert flops("ddpo", guided=False) < 0.51 * flops("ddpo")
    assert flops("tdpo", encoder_flops=7.0) - flops("ddpo") == pytest.approx(10 * 50 * (sd1.decode_flops + 7.0))
    assert flops("tdpo_r") == flops("tdpo")
    uniform = 10 * (51 * backward + sd1.decode_backward_flops)  # K = 25.5 on average, two passes each
    assert flops("alignprop") - flops("base") == pytest.approx(uniform)
    assert flops("alignprop", {"truncation": "fixed"}) < flops("alignprop") < flops("alignprop", checkpointed=True)
    again = 51 * forward + sd1.decode_backward_flops_checkpointed - sd1.decode_backward_flops  # each pass once more
    assert flops("alignprop", checkpointed=True) - flops("alignprop") == pytest.approx(10 * again)
    assert flops("alignprop", {"truncation": "full"}) > flops("alignprop")
    predicted = run_flops(sd1, ImageCost(predicted=3), queries=10, num_steps=50, guided=True)
    assert predicted - flops("base") == pytest.approx(10 * 6 * forward)


def test_alignprops_normal_truncation_costs_its_mean() -> None:
    """T - int(N(0.84 T, 0.1 T)) in 1..T-1: the mean of many draws of the algorithm itself."""
    params = AlignProp.Params(truncation="normal")
    algorithm = AlignProp(context(ToyPolicy(steps=50)), params)
    drawn = [algorithm.draw_grad_steps() for _ in range(4000)]
    assert AlignProp.cost(params, 50).backpropagated == pytest.approx(sum(drawn) / len(drawn), rel=0.03)
