"""ImageReward v1.0 (Xu et al. 2023, arXiv 2304.05977) on the BLIP classes of transformers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import Self

from overopt_bench.encoders.preprocessing import clip_pixels
from overopt_bench.lazy import torch
from overopt_bench.registry import register_reward
from overopt_bench.rewards.published import PublishedReward
from overopt_bench.types import Resources
from overopt_bench.weights import Repo, digest, load_strictly, read_json, read_state, refusing

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from transformers import BertTokenizer

    from overopt_bench.rewards.blip import ImageRewardModel

IMAGEREWARD = Repo(
    "zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", "Apache-2.0; built on BLIP (BSD-3-Clause)",
    {"ImageReward.pt": 1_786_880_927, "med_config.json": 485},
    {"ImageReward.pt": "d71dc8d4912bc633c06ab8ef1ef6a81e8199d4369f14b47b29baf1d19de561f6"},
)  # fmt: skip
VOCABULARY = Path(str(files("overopt_bench.rewards") / "assets" / "bert_base_uncased_vocab.txt"))
TOKENS = 35  # of a prompt, [CLS] and [SEP] included
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output; in the official code, not in the file


def bert_tokenizer() -> BertTokenizer:
    """Make the tokenizer of ``bert-base-uncased`` with BLIP's two tokens behind it, ``[DEC]`` 30522 and ``[ENC]`` 30523."""
    from transformers import BertTokenizer

    vocabulary = VOCABULARY.read_text(encoding="utf-8").split("\n")[:-1]
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(vocabulary)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
    return tokenizer


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
        from overopt_bench.rewards.blip import ImageRewardModel, transformers_names

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
        return torch.nn.functional.normalize(self.model.vision(pixel_values=pixels).last_hidden_state[:, 0], dim=-1)

    def official_pixels(self, pictures: Sequence[Image.Image]) -> Tensor:
        return clip_pixels(pictures, self.side, crop="torchvision")

    def transform(self) -> Hashable:
        return (clip_pixels, self.side, "torchvision")
