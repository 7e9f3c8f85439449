"""A pipeline's VAE as the way from the U-Net's latents to images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_infinite(images: Tensor) -> None:
    """Refuse images ``[B, 3, H, W]`` that are not finite, which not every reward notices.

    Raises:
        FloatingPointError: with how many there are.
    """
    if not bool((good := images.isfinite().flatten(1).all(1)).all()):
        raise FloatingPointError(f"{int((~good).sum())} of {len(good)} images that the policy drew are not finite")


class Decoder:
    """A frozen ``AutoencoderKL`` with diffusers' scaling of latents.

    Args:
        vae: on its device.
        dtype: of its weights.
    """

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        self.vae, self.dtype = vae, dtype

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents ``[B, C, h, w]`` to images ``[B, 3, H, W]`` in [0, 1], float32; differentiable."""
        latents = self._unscale(latents).to(self.dtype, memory_format=torch.channels_last)
        return torch.as_tensor((self.vae.decode(latents, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1))

    def _unscale(self, latents: Tensor) -> Tensor:
        """From the U-Net's scale to the VAE's, as diffusers' pipelines do."""
        config = self.vae.config
        moments, scale = (config.get("latents_mean"), config.get("latents_std")), float(config.scaling_factor)
        if None in moments:
            return latents / scale
        mean, std = (torch.tensor(values, device=latents.device).view(1, -1, 1, 1) for values in moments)  # per channel
        return latents * std / scale + mean
