"""Small random checkpoints in the real file formats, under the real names, for the suites of Stable Diffusion.

``python tests/tiny_checkpoints.py DIR`` makes a folder for ``--weights DIR``. The pictures are noise and the scores mean
nothing; everything else is as with the published files.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from overopt_bench.rewards.blip import BLOCK_NAMES, VISION_NAMES, ImageRewardModel

T = TypeVar("T", bound=torch.nn.Module)
SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip
MED_CONFIG = {
    "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512, "model_type": "bert", "num_attention_heads": 2, "num_hidden_layers": 2,
    "pad_token_id": 0, "type_vocab_size": 2, "vocab_size": 30524, "encoder_width": 64, "add_cross_attention": True,
}  # fmt: skip


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own vocabulary, from the copy that open_clip ships, as ``vocab.json`` and ``merges.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = gzip.decompress((files("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = raw.split("\n")[1 : 49152 - 256 - 2 + 1]
    ranges = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [256 + k for k in range(256 - len(ranges))]
    letters = [chr(c) for c in ranges + others]
    words = letters + [c + "</w>" for c in letters] + ["".join(m.split()) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )
    return CLIPTokenizer.from_pretrained(folder)


def enliven(module: T) -> T:
    """Weights large enough that pictures and prompts make a difference: initialisers of 0.02 hide every mistake."""
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1 and "embedding" not in name:
            torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
    return module


def clip_model(projection: int, act: str) -> CLIPModel:
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_act": act,
    }
    vision = {**text, "image_size": 224, "patch_size": 32}
    return CLIPModel(
        CLIPConfig(text_config={**text, "eos_token_id": 49407}, vision_config=vision, projection_dim=projection)
    )


def unet(**extra: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1,
        norm_num_groups=8, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **extra,
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    return enliven(AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, latent_channels=4, **kinds))


def _text_config(width: int = 32, projection: int = 16) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=1, num_attention_heads=2, eos_token_id=49407,
        projection_dim=projection,
    )  # fmt: skip


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> None:
    tokenizer = write_tokenizer(folder / "tokenizer")
    scheduler = (
        PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=False, **SCHEDULE)
        if prediction == "epsilon"
        else DDIMScheduler(prediction_type=prediction, set_alpha_to_one=False, clip_sample=False, **SCHEDULE)
    )
    StableDiffusionPipeline(
        _vae(), CLIPTextModel(_text_config()), tokenizer, unet(cross_attention_dim=32), scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def as_published(folder: Path) -> None:
    """What the files of 2022 have and current libraries leave out: a safety checker in the index, keys and buffers."""
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPFeatureExtractor"]
    (folder / "model_index.json").write_text(json.dumps(index))
    path = folder / "text_encoder/model.safetensors"
    state = {key if key.startswith("text_model.") else f"text_model.{key}": v for key, v in load_file(path).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(state, path, metadata={"format": "pt"})


def stable_diffusion_xl(folder: Path) -> None:
    one, two = write_tokenizer(folder / "tokenizer"), write_tokenizer(folder / "tokenizer_2")
    xl_unet = unet(
        cross_attention_dim=32 + 24, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=16 + 6 * 8,
    )  # fmt: skip
    encoders = CLIPTextModel(_text_config()), CLIPTextModelWithProjection(_text_config(24, 16))
    StableDiffusionXLPipeline(
        _vae(), *encoders, one, two, xl_unet, EulerDiscreteScheduler(**SCHEDULE), force_zeros_for_empty_prompt=True
    ).save_pretrained(folder)


def image_reward(folder: Path) -> None:
    """``ImageReward.pt`` under its official key names, with the tensors that nobody uses."""
    shapes = {
        "vision.embeddings.patch_embedding.weight": (64, 3, 32, 32), "vision.embeddings.position_embedding": (1, 50, 64),
        "vision.encoder.layers.1.mlp.fc1.weight": (128, 64), "vision.encoder.layers.0.mlp.fc1.weight": (128, 64),
        "text.embeddings.word_embeddings.weight": (30524, 64), "head.layers.0.weight": (1024, 64),
    }  # fmt: skip
    model = enliven(ImageRewardModel({k: torch.empty(v) for k, v in shapes.items()}, MED_CONFIG))
    blocks, names = ({v: k for k, v in table.items()} for table in (BLOCK_NAMES, VISION_NAMES))
    state = {}
    for key, value in model.state_dict().items():
        part, rest = key.split(".", 1)
        if part == "vision" and rest.startswith("encoder.layers."):
            _, _, number, inner = rest.split(".", 3)
            stem, kind = inner.rsplit(".", 1)
            rest = f"blocks.{number}.{blocks[stem]}.{kind}"
        prefix = {"vision": "blip.visual_encoder", "text": "blip.text_encoder", "head": "mlp"}[part]
        state[f"{prefix}.{names.get(rest, rest) if part == 'vision' else rest}"] = value
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    for name in ("vision_proj", "text_proj"):
        state |= {f"blip.{name}.weight": torch.randn(8, 64), f"blip.{name}.bias": torch.randn(8)}
    folder.mkdir(parents=True)
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))


def hps(folder: Path) -> None:
    from open_clip.model import CLIP

    config = {
        "embed_dim": 32, "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "head_width": 32, "patch_size": 32},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    for name in ("HPS_v2_compressed.pt", "HPS_v2.1_compressed.pt"):
        torch.save(
            {"state_dict": {k: v.half() for k, v in enliven(CLIP(**config)).state_dict().items()}}, folder / name
        )


def edited(source: Path, folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> Path:
    """A copy of a checkpoint whose configuration files say something else; weights are links to the same files.

    Args:
        changes: path of a JSON file to the values that it gets; None takes a value out.
    """
    for path in source.rglob("*"):
        target = folder / path.relative_to(source)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    for name, values in changes.items():
        edit_json(folder / name, values)
    return folder


def edit_json(path: Path, values: Mapping[str, Any]) -> None:
    """Give a JSON file these values; None takes a value out. A file that is linked elsewhere stays as it is there."""
    content = json.loads(path.read_text()) | dict(values)
    path.unlink()
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def make_tiny_checkpoints(folder: Path, seed: int = 0) -> Path:
    """Everything that the suites sd14, sd15 and sdxl read, in ``folder``; about 60 MB."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in ("stable-diffusion-v1-4", "stable-diffusion-v1-5"):
            stable_diffusion(folder / name)
            as_published(folder / name)
        stable_diffusion(folder / "stable-diffusion-2-1", "v_prediction")
        stable_diffusion_xl(folder / "stable-diffusion-xl-base-1.0")
        for name, projection, act in (("clip-vit-large-patch14", 768, "quick_gelu"), ("PickScore_v1", 32, "gelu")):
            clip_model(projection, act).save_pretrained(folder / name)
            path = folder / name / "model.safetensors"
            buffers = {
                f"{tower}.embeddings.position_ids": torch.arange(n)[None]
                for tower, n in (("text_model", 77), ("vision_model", 50))
            }
            save_file({**load_file(path), **buffers}, path, metadata={"format": "pt"})
        write_tokenizer(folder / "clip-vit-large-patch14")
        image_reward(folder / "ImageReward")
        hps(folder / "HPSv2")
    return folder


if __name__ == "__main__":
    print(make_tiny_checkpoints(Path(sys.argv[1])))
