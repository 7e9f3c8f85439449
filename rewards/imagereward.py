"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977) on the BLIP classes of transformers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from typing_extensions import Self

from overopt_bench.encoders.preprocessing import clip_pixels
from overopt_bench.registry import register_reward
from overopt_bench.rewards.clip import RegressionHead
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.types import Resources
from overopt_bench.weights import Repo, digest, load_strictly, read_json, read_state, refusing

if TYPE_CHECKING:
    from transformers import BertTokenizer

IMAGEREWARD = Repo(
    "zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", "Apache-2.0; built on BLIP (BSD-3-Clause)",
    {"ImageReward.pt": 1_786_880_927, "med_config.json": 485},
    {"ImageReward.pt": "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"},
)  # fmt: skip
VOCABULARY = Path(str(files("overopt_bench.rewards") / "assets" / "bert_base_uncased_vocab.txt"))
TOKENS = 35  # of a prompt, [CLS] and [SEP] included
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output; in the official code, not in the file
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


def bert_tokenizer() -> BertTokenizer:
    """Make the tokenizer of ``bert-base-uncased`` with BLIP's two tokens behind it, ``[DEC]`` 30522 and ``[ENC]`` 30523."""
    from transformers import BertTokenizer

    vocabulary = VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


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


@register_reward(suite="sd")
class ImageReward(PublishedReward):
    """ImageReward v1.0: (head - 0.167) / 1.033, near 0 on its authors' data; TDPO's code shows the bare head."""

    name = "imagereward"
    repos = (IMAGEREWARD,)
    model: ImageRewardModel

    def __init__(self, model: ImageRewardModel, tokenizer: BertTokenizer, weights_digest: str) -> None:
        super().__init__(model, weights_digest)
        self.tokenizer, self.side = tokenizer, model.side
        self.feature_dim = int(model.vision.config.hidden_size)

    @classmethod
    def load(cls, resources: Resources) -> Self:
        path = resources.weights.path(IMAGEREWARD, "ImageReward.pt")
        med_config = read_json(resources.weights.path(IMAGEREWARD, "med_config.json"))
        with refusing(path, "ImageReward's checkpoint, with med_config.json beside it"):
            state = transformers_names(read_state(path))
            model = ImageRewardModel(state, med_config)
        load_strictly(model, state, path)
        return cls(model, bert_tokenizer(), digest(path))

    def score_pixels(self, pixels: Tensor, prompts: Sequence[str]) -> Tensor:
        whole = self.tokenizer(list(prompts)).input_ids
        self.warn_cut(prompts, [len(ids) > TOKENS for ids in whole], TOKENS)
        tokens = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        ).to(pixels.device)
        return (torch.as_tensor(self.model(pixels, tokens.input_ids, tokens.attention_mask)) - MEAN) / STD

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Give the image encoder's class token, L2-normalised: ``[B, D]``."""
        return F.normalize(self.model.vision(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)

    def official_pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return clip_pixels(pictures, self.side, crop="torchvision")

    def transform(self) -> Hashable:
        return (clip_pixels, self.side, "torchvision")
