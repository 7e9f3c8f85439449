"""Which diffusers pipelines can be trained: what their configurations say, and a line for what would go wrong.

A configuration that a pipeline needs and the policy would ignore gives other images without a word, so whatever is
not known here is refused, before anything is loaded or written.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from overopt_bench.diffusion.schedule import prediction_of
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch

if TYPE_CHECKING:
    from torch import nn

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
# of diffusers' schedulers, those for networks that are told one of N timesteps of a schedule of betas
SCHEDULERS = tuple(f"{name}Scheduler" for name in (
    "DDIM", "DDIMParallel", "DDPM", "DDPMParallel", "DEISMultistep", "DPMSolverMultistep", "DPMSolverSDE",
    "DPMSolverSinglestep", "EulerAncestralDiscrete", "EulerDiscrete", "HeunDiscrete", "KDPM2AncestralDiscrete",
    "KDPM2Discrete", "LMSDiscrete", "PNDM", "SASolver", "UniPCMultistep",
))  # fmt: skip
PARTS = ("scheduler", "unet", "vae", "text_encoder", "text_encoder_2")

Configs = Mapping[str, Mapping[str, Any] | None]


def configs_of(pipeline: Any) -> dict[str, dict[str, Any] | None]:
    """The configuration of each part that a pipeline's class has, with its ``_class_name``; None where it is left out."""
    parts = {name: getattr(pipeline, name) for name in PARTS if hasattr(pipeline, name)}
    return {name: None if part is None else _config_of(part) for name, part in parts.items()}


def _config_of(part: Any) -> dict[str, Any]:
    config = part.config.to_dict() if hasattr(part.config, "to_dict") else dict(part.config)
    return {**config, "_class_name": type(part).__name__}


def latent_side(unet: Mapping[str, Any]) -> int:
    """Height and width of the latents that a U-Net was made for.

    Raises:
        UserError: where it does not name one number.
    """
    size = unet.get("sample_size")
    if not isinstance(size, int):
        raise UserError(f"the U-Net's sample_size is {size!r}; it must be one number, the side of square latents")
    return size


def cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Bring a module's floating-point parameters and buffers to ``dtype``, in place."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)  # not module.to: diffusers warns of it, even where nothing changes


def refuse_unsupported(kind: str, configs: Configs, *, own_schedule: bool = False) -> None:
    """Make sure that the policy does all that a pipeline's configurations ask for.

    Args:
        kind: the pipeline's class.
        configs: as ``configs_of``, of live parts or of files that lack their defaults.
        own_schedule: whether a schedule of its own samples, so that what the checkpoint's scheduler asks for is moot.

    Raises:
        UserError: with what is not supported.
    """
    if lacking := [name for name in PARTS[:4] if name not in configs]:
        raise UserError(f"the policy needs a {' or '.join(KINDS)}, not a {kind}, which has no {lacking[0]}")
    known = {name: config for name, config in configs.items() if config is not None}
    if left_out := sorted(configs.keys() - known.keys()):
        raise UserError(f"the pipeline is a {kind} without {' and '.join(left_out)}; all its parts are needed")
    latent_side(known["unet"])
    scheduler = iter(()) if own_schedule else _scheduler(known["scheduler"])
    for check in (scheduler, _unet(known), _vae(known["vae"], "text_encoder_2" in known)):
        for complaint in check:
            raise UserError(complaint)


def _scheduler(config: Mapping[str, Any]) -> Iterator[str]:
    name = config.get("_class_name")
    if name not in SCHEDULERS:
        yield (
            f"the checkpoint's scheduler {name} is not of a network that takes timesteps of a schedule of betas; allowed are"
            f" {', '.join(SCHEDULERS)}"
        )
    prediction_of(config)
    if config.get("use_flow_sigmas"):
        yield "the checkpoint's scheduler has use_flow_sigmas: flow matching is not supported"
    if config.get("timestep_type", "discrete") != "discrete":
        yield f"the checkpoint's scheduler has timestep_type {config['timestep_type']!r}; only 'discrete' is supported"
    if config.get("thresholding"):
        yield "the checkpoint's scheduler has thresholding, which is not meant for latents; set it to false in its config"


def _unet(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    unet, vae = configs["unet"], configs["vae"]
    if unet.get("_class_name") != "UNet2DConditionModel":
        yield f"the pipeline's U-Net is of class {unet.get('_class_name')}; what can be trained is UNet2DConditionModel"
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        yield f"the U-Net takes {channels} channels and the VAE gives {latent}: inpainting is not supported"
    if (out := unet.get("out_channels", 4)) != channels:
        yield f"the U-Net takes {channels} channels and gives {out}: a learned variance is not supported"
    if unet.get("time_cond_proj_dim") is not None:
        yield "the U-Net takes the guidance scale as an input (time_cond_proj_dim): distilled models are not supported"
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type", "encoder_hid_dim"):
        if unet.get(name) is not None:
            yield f"the U-Net has {name} {unet[name]!r}: conditions other than the prompt are not supported"
    wanted = "text_time" if "text_encoder_2" in configs else None
    if (added := unet.get("addition_embed_type")) != wanted:
        yield f"the U-Net has addition_embed_type {added!r}, where a pipeline of its kind has {wanted!r}"
    yield from _text(configs)


def _text(configs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Whether the U-Net takes what the text encoders give; sizes that a file leaves out are not checked."""
    unet, second = configs["unet"], configs.get("text_encoder_2", {})
    widths = [configs[name].get("hidden_size") for name in ("text_encoder", "text_encoder_2") if name in configs]
    asked = unet.get("cross_attention_dim")
    if isinstance(asked, int) and None not in widths and asked != sum(map(int, filter(None, widths))):
        given = " and ".join(map(str, widths))
        yield f"the U-Net attends to embeddings of width {asked} and the text encoders give {given}: not of one model"
    time, projected = unet.get("addition_time_embed_dim"), second.get("projection_dim")
    width = unet.get("projection_class_embeddings_input_dim")
    if None not in (time, projected, width) and width != 6 * int(time or 0) + int(projected or 0):
        yield (
            f"the U-Net takes added conditions of width {width}, where six sizes and the pooled prompt have"
            f" {6 * int(time or 0) + int(projected or 0)}: XL's refiner (requires_aesthetics_score) is not supported"
        )


def _vae(config: Mapping[str, Any], is_xl: bool) -> Iterator[str]:
    if config.get("_class_name") != "AutoencoderKL":
        yield f"the pipeline's VAE is of class {config.get('_class_name')}; what can be used is AutoencoderKL"
    if config.get("shift_factor"):
        yield f"the VAE has shift_factor {config['shift_factor']}, which the pipelines of Stable Diffusion do not know"
    standardised = config.get("latents_mean") is not None and config.get("latents_std") is not None
    if standardised and not is_xl:
        yield f"the VAE has latents_mean and latents_std, which only a {KINDS[1]} knows"
