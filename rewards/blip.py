"""ImageReward's network on the BLIP classes of transformers, and the names of its weights there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from overopt_bench.rewards.heads import RegressionHead

HEAD_WIDTH = 64  # of each attention head of the image encoder; the file does not tell
BLOCK_NAMES = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding", "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
    "norm.weight": "post_layernorm.weight", "norm.bias": "post_layernorm.bias",
}  # fmt: skip


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of the official state dict to those of ``ImageRewardModel``: 620 of its 625.

    Left out: the buffer ``position_ids`` and the four tensors of two projections that the score does not use.
    """
    renamed = {}
    for key, value in state.items():
        if key.startswith("blip.visual_encoder."):
            name = key.removeprefix("blip.visual_encoder.")
            if name.startswith("blocks."):
                _, number, rest = name.split(".", 2)
                part, kind = rest.rsplit(".", 1)
                name = f"encoder.layers.{number}.{BLOCK_NAMES.get(part, part)}.{kind}"
            renamed["vision." + VISION_NAMES.get(name, name)] = value
        elif key.startswith("blip.text_encoder."):
            if not key.endswith("position_ids"):
                renamed["text." + key.removeprefix("blip.text_encoder.")] = value
        elif key.startswith("mlp."):
            renamed["head." + key.removeprefix("mlp.")] = value
        elif not key.startswith(("blip.vision_proj.", "blip.text_proj.")):
            renamed[key] = value  # nobody's: strict loading will name it
    return renamed


class ImageRewardModel(nn.Module):
    """BLIP's image encoder, BERT whose layers attend to its patches, and a head on the first token.

    Args:
        state: under ``transformers_names``; gives the image encoder's sizes. med_config: BERT's, as in the file
            beside the weights.
    """

    def __init__(self, state: Mapping[str, Tensor], med_config: Mapping[str, Any]) -> None:
        from transformers import BlipTextConfig, BlipVisionConfig
        from transformers.models.blip.modeling_blip import BlipVisionModel
        from transformers.models.blip.modeling_blip_text import BlipTextModel

        super().__init__()
        width, _, patch, _ = state["vision.embeddings.patch_embedding.weight"].shape
        patches = state["vision.embeddings.position_embedding"].shape[1] - 1
        self.side = patch * round(patches**0.5)
        layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("vision.encoder.layers."))
        self.vision = BlipVisionModel(
            BlipVisionConfig(
                hidden_size=width, intermediate_size=state["vision.encoder.layers.0.mlp.fc1.weight"].shape[0],
                num_hidden_layers=layers, num_attention_heads=width // HEAD_WIDTH, image_size=self.side, patch_size=patch,
                layer_norm_eps=1e-6, hidden_act="gelu",
            )
        )  # fmt: skip
        copied = (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps",
            "max_position_embeddings", "pad_token_id",
        )  # fmt: skip
        text = BlipTextConfig(
            **{key: med_config[key] for key in copied if key in med_config},
            vocab_size=state["text.embeddings.word_embeddings.weight"].shape[0], encoder_hidden_size=width,
            is_decoder=True,  # creates the cross-attention; calls stay bidirectional
        )  # fmt: skip
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = RegressionHead(state["head.layers.0.weight"].shape[1])

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute raw scores ``[B]`` of pixels ``[B, 3, side, side]``, ids and mask ``[B, L]``."""
        patches = self.vision(pixel_values=pixels).last_hidden_state  # [B, 1 + patches, width]
        everywhere = torch.ones(patches.shape[:2], dtype=torch.long, device=pixels.device)
        text = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=patches, encoder_attention_mask=everywhere
        ).last_hidden_state
        return torch.as_tensor(self.head(text[:, 0]))
