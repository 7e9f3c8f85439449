"""Reference vectors of the package image-reward 1.5 on random weights. See README.md for the environment and command.

True size (the 625 tensors of ``ImageReward.pt``) and a small one with every kind of tensor.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.machinery
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import describe, report, save, sha256, shapes_of, subsample
from weights import PROMPTS, digest, fill, pictures

COMMAND = "PYTHONPATH=DIR HF_HUB_OFFLINE=1 python tests/official/dump_imagereward.py --vocab VOCAB --out tests/golden"

# BLIP's med_config.json, which ImageReward uses unchanged
MED_CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}
VISION: dict[str, int] = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
SMALL_MED_CONFIG = MED_CONFIG | {"num_hidden_layers": 2, "intermediate_size": 1024}
SMALL_VISION: dict[str, int] = {"embed_dim": 128, "depth": 2, "num_heads": 2}
GRADIENTS = (("ramp", "short"), ("wide", "unicode"))
UNUSED = ("clip", "datasets", "diffusers", "accelerate")  # imported by parts of the package that do not score


def import_package(vocab: Path) -> types.ModuleType:
    """``ImageReward.ImageReward`` without the two ``__init__`` files, whose other imports are not installed."""
    for name in UNUSED:
        sys.modules[name] = None
    for name in ("ImageReward", "ImageReward.models"):
        spec = importlib.machinery.PathFinder.find_spec(
            name.rsplit(".", 1)[-1], None if name == "ImageReward" else list(sys.modules["ImageReward"].__path__)
        )
        assert spec is not None and spec.submodule_search_locations is not None, f"{name} is not installed"
        module = types.ModuleType(name)
        module.__path__ = list(spec.submodule_search_locations)
        sys.modules[name] = module
    from transformers import BertTokenizer

    BertTokenizer.from_pretrained = classmethod(lambda cls, *_, **__: cls(str(vocab)))
    return importlib.import_module("ImageReward.ImageReward")


def build(package: types.ModuleType, med_config: dict[str, Any], vision: dict[str, int]) -> tuple[Any, dict[str, Any]]:
    """The package's model, filled strictly, in evaluation mode, and its description."""
    pretrain = sys.modules["ImageReward.models.BLIP.blip_pretrain"]
    transformer = sys.modules["ImageReward.models.BLIP.vit"].VisionTransformer
    if vision is not VISION:
        original = pretrain.create_vit
        pretrain.create_vit = lambda vit, size, *_: (
            transformer(img_size=size, patch_size=16, drop_path_rate=0.1, **vision),
            vision["embed_dim"],
        )
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(med_config, file)
        file.flush()
        model = package.ImageReward(med_config=file.name, device="cpu").eval()
    if vision is not VISION:
        pretrain.create_vit = original
    own = model.state_dict()
    state = fill(shapes_of(own))
    assert all(state[key].dtype == value.dtype for key, value in own.items())
    assert all(torch.equal(state[key], own[key]) for key in own if key.endswith("position_ids"))
    model.load_state_dict(state, strict=True)
    encoder = model.blip.visual_encoder
    assert (encoder.embed_dim, len(encoder.blocks), encoder.blocks[0].attn.num_heads) == tuple(vision.values())
    shapes = shapes_of(state)
    content = {
        "med_config": med_config, "vision": vision, "seed": 0, "tensors": len(shapes), "state_sha256": digest(state), "shapes": shapes,
    }  # fmt: skip
    return model, content


def measure(model: Any, pixels: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Scores both ways, two gradients and the beginnings of the two encoders' outputs."""
    seen: dict[str, torch.Tensor] = {}
    model.blip.visual_encoder.register_forward_hook(lambda *args: seen.update(image=args[-1][0, 0, :16].detach()))
    model.blip.text_encoder.register_forward_hook(
        lambda *args: seen.update(text=args[-1].last_hidden_state[0, 0, :16].detach())
    )
    size = (len(pixels), len(PROMPTS))
    scores, from_pixels = np.zeros(size, np.float32), np.zeros(size, np.float32)
    image_cls, text_cls = np.zeros((len(pixels), 16), np.float32), np.zeros((*size, 16), np.float32)

    def from_tensor(pixel: torch.Tensor, prompt: str) -> torch.Tensor:
        text = model.blip.tokenizer(prompt, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        return model.score_gard(text.input_ids, text.attention_mask, pixel[None])[0, 0]

    for i, (name, picture) in enumerate(pictures().items()):
        for j, prompt in enumerate(PROMPTS.values()):
            with torch.no_grad():
                scores[i, j] = model.score(prompt, picture)
                from_pixels[i, j] = from_tensor(pixels[name], prompt)
            image_cls[i], text_cls[i, j] = seen["image"].numpy(), seen["text"].numpy()
    arrays: dict[str, Any] = {
        "scores": scores, "scores_from_pixels": from_pixels, "image_cls": image_cls, "text_cls": text_cls,
    }  # fmt: skip
    for picture_name, prompt_name in GRADIENTS:
        leaf = pixels[picture_name].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(from_tensor(leaf, PROMPTS[prompt_name]), leaf)
        part, norm = subsample(gradient)
        arrays |= {f"gradient_{picture_name}_{prompt_name}": part, f"gradient_norm_{picture_name}_{prompt_name}": norm}
    return arrays


def main() -> None:
    """Writes official_imagereward.npz and official_imagereward.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of bert-base-uncased")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    package = import_package(options.vocab)
    content = describe("image-reward", COMMAND) | {"vocab_sha256": sha256(options.vocab), "gradients": GRADIENTS}
    arrays: dict[str, Any] = {}
    for variant, med_config, vision in (("small", SMALL_MED_CONFIG, SMALL_VISION), ("full", MED_CONFIG, VISION)):
        model, content[variant] = build(package, med_config, vision)
        if not arrays:
            tokenizer = model.blip.tokenizer
            text = tokenizer(list(PROMPTS.values()), padding="max_length", truncation=True, max_length=35)
            arrays = {"input_ids": np.array(text.input_ids), "attention_mask": np.array(text.attention_mask)}
            pixels = {name: model.preprocess(picture) for name, picture in pictures().items()}
            resize, crop, convert, to_tensor, normalize = model.preprocess.transforms
            stored = [np.array(convert(crop(resize(picture)))) for picture in pictures().values()]
            for array, pixel in zip(stored, pixels.values(), strict=True):
                assert torch.equal(normalize(to_tensor(array)), pixel), "uint8 does not give the pixels back"
            arrays["pixels"] = np.stack(stored).transpose(0, 3, 1, 2)
        arrays |= {f"{variant}_{name}": value for name, value in measure(model, pixels).items()}
        report(variant, arrays[f"{variant}_scores"])
        gap = np.abs(arrays[f"{variant}_scores"] - arrays[f"{variant}_scores_from_pixels"]).max()
        print(f"  score against score_gard: {gap:.1e}")
        del model
    save(options.out / "official_imagereward", arrays, content)


if __name__ == "__main__":
    main()
