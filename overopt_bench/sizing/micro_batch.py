"""Micro-batches that fit a GPU. They change memory and speed; the experiment is the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from overopt_bench.diffusion.policy import MICRO_BATCH, PRECISIONS
from overopt_bench.errors import UserError
from overopt_bench.sizing.costs import Costs, costs
from overopt_bench.types import ImageCost, Reward

HEADROOM = 0.15  # of a card: CUDA's context, the workspaces of kernels, fragmentation
REWARD_GRAPH = 0.61e9  # bytes a differentiable image costs in CLIP ViT-H/14, the largest of the rewards


@dataclass(frozen=True)
class Needs:
    """Bytes: ``held`` whatever is computed, and ``sampling`` and ``training`` for each sample of a pass."""

    held: float
    sampling: float
    training: float

    @property
    def least(self) -> float:
        """What a card must have to train with micro-batches of one."""
        return (self.held + max(self.sampling, self.training)) / (1 - HEADROOM)

    def fitting(self, total: float, each: float) -> int:
        """The largest micro-batch of passes that take ``each`` on a card of ``total`` bytes; 0 where none fits."""
        return max(0, min(MICRO_BATCH, int(((1 - HEADROOM) * total - self.held) / each)))


def needs(cost: Costs, guided: bool, reward_bytes: float, image: ImageCost, checkpoint: bool) -> Needs:
    """Compute what an algorithm needs.

    Args:
        cost: of the architecture.
        guided: whether classifier-free guidance doubles each pass of the U-Net.
        reward_bytes: weights of all rewards on the card.
        image: what the algorithm computes for each image.
        checkpoint: whether activations are recomputed in the backward pass.
    """
    width = 2 if guided else 1
    sampling = max(width * cost.sample_bytes, cost.decode_sample_bytes)
    unet = width * (cost.train_bytes_checkpointed if checkpoint else cost.train_peak_bytes)
    chain = width * (cost.chain_bytes_checkpointed if checkpoint else cost.train_peak_bytes)
    decode = (cost.decode_bytes_checkpointed if checkpoint else cost.decode_peak_bytes) + REWARD_GRAPH
    training = max(chain, decode) if image.backpropagated else unet if image.trained else sampling
    return Needs(cost.weight_bytes + reward_bytes, sampling, training)


def pipeline_costs(pipeline: Any, precision: str) -> Costs:
    """Compute the costs of a loaded pipeline's U-Net and VAE."""
    encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
    text = sum(p.numel() for encoder in encoders if encoder is not None for p in encoder.parameters())
    return costs(dict(pipeline.unet.config), dict(pipeline.vae.config), PRECISIONS[precision], text)


def choose(
    pipeline: Any, precision: str, rewards: Iterable[Reward], guided: bool, device: str, *, algo: str, image: ImageCost,
    checkpoint: bool,
) -> tuple[int, int]:  # fmt: skip
    """Choose micro-batches for sampling and for training on this device, the largest that fit.

    Args:
        pipeline: the loaded base model.
        precision: of its passes.
        rewards: all that will be on the device.
        guided: whether classifier-free guidance doubles each pass of the U-Net.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        algo: the algorithm's name, for the error.
        image: what the algorithm computes for each image.
        checkpoint: whether activations are recomputed in the backward pass.

    Raises:
        UserError: where the GPU cannot hold even one sample.
    """
    if torch.device(device).type != "cuda":
        return MICRO_BATCH, MICRO_BATCH
    total = torch.cuda.get_device_properties(device).total_memory
    need = needs(pipeline_costs(pipeline, precision), guided, weight_bytes(rewards), image, checkpoint)
    return fit(need, total, algo)


def choose_sampling(
    pipeline: Any, precision: str, rewards: Iterable[Reward], guided: bool, device: str
) -> int:  # fmt: skip
    """Choose the micro-batch for sampling without training on this device, the largest that fits."""
    if torch.device(device).type != "cuda":
        return MICRO_BATCH
    cost = pipeline_costs(pipeline, precision)
    need = needs(cost, guided, weight_bytes(rewards), ImageCost(), checkpoint=False)
    return max(1, need.fitting(torch.cuda.get_device_properties(device).total_memory, need.sampling))


def fit(need: Needs, total: float, algo: str) -> tuple[int, int]:
    """Fit micro-batches for sampling and for training into a card of ``total`` bytes.

    Raises:
        UserError: where even one sample is too much.
    """
    sampling, training = need.fitting(total, need.sampling), need.fitting(total, need.training)
    if not (sampling and training):
        raise UserError(
            f"{algo} needs about {need.least / 1e9:.0f} GB of GPU memory at the least and the card has {total / 1e9:.0f} GB;"
            " --checkpoint takes less, so do --precision bfloat16 and fewer golds; --micro-batch 1 tries all the same"
        )
    return sampling, training


def weight_bytes(rewards: Iterable[Reward]) -> float:
    """Add up the bytes of the networks that rewards hold, those that several share counted once."""
    seen: dict[int, int] = {}
    for reward in rewards:
        for network in reward.networks():
            for p in network.parameters():
                seen[p.data_ptr()] = p.numel() * p.element_size()
    return sum(seen.values())
