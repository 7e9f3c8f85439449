"""Reference vectors of the module hpsv2 of hpsv2x 1.2.0 on random weights. See README.md for the environment and command.

The package's own ``img_score.score`` scores with a small model whose checkpoint is saved as the real one is.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.transforms.functional
from record import describe, report, save, sha256, shapes_of, subsample
from weights import PROMPTS, digest, fill, pictures

COMMAND = "PYTHONPATH=DIR HF_HUB_OFFLINE=1 python tests/official/dump_hpsv2.py --out tests/golden"
NAME = "small"
CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
# the keyword arguments of hpsv2/img_score.py, apart from the model's name, pretrained, precision and device
KEYWORDS: dict[str, Any] = {
    "jit": False, "force_quick_gelu": False, "force_custom_text": False, "force_patch_dropout": False, "force_image_size": None,
    "pretrained_image": False, "image_mean": None, "image_std": None, "light_augmentation": True, "aug_cfg": {}, "output_dict": True,
    "with_score_predictor": False, "with_region_predictor": False,
}  # fmt: skip
GRADIENTS = (("ramp", "short"), ("ramp", "long"))


def without_antialias() -> types.SimpleNamespace:
    """torchvision's functional module as it was before 0.17: ``resize`` of a tensor does not antialias."""
    functional = types.SimpleNamespace(**vars(torchvision.transforms.functional))
    functional.resize = functools.partial(torchvision.transforms.functional.resize, antialias=False)
    return functional


def main() -> None:
    """Writes official_hpsv2.npz and official_hpsv2.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HPS_ROOT"] = folder  # else the package makes a folder in the home directory
        arrays, content = measure(Path(folder))
    for name in ("scores", "scores_no_antialias"):
        report(name, arrays[name])
    save(options.out / "official_hpsv2", arrays, content)


def measure(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """All arrays and their description; ``folder`` holds the model's configuration and checkpoint meanwhile."""
    # imported by name: the package is in no environment but this script's own
    img_score: Any = importlib.import_module("hpsv2.img_score")
    open_clip = importlib.import_module("hpsv2.src.open_clip")
    tokenizer = importlib.import_module("hpsv2.src.open_clip.tokenizer")
    transform: Any = importlib.import_module("hpsv2.src.open_clip.transform")

    (folder / f"{NAME}.json").write_text(json.dumps(CONFIG))
    open_clip.add_model_config(folder / f"{NAME}.json")
    model, _, preprocess = open_clip.create_model_and_transforms(NAME, None, precision="fp32", device="cpu", **KEYWORDS)
    state = fill(shapes_of(model.state_dict()))
    half = {key: value.half() for key, value in state.items()}
    checkpoint = folder / "HPS_v2_compressed.pt"
    torch.save({"state_dict": half}, checkpoint)

    img_score.device = "cpu"
    img_score.model_dict.update(model=model, preprocess_val=preprocess)
    kinds = {"": torchvision.transforms.functional, "_no_antialias": without_antialias()}
    arrays: dict[str, Any] = {"tokens": open_clip.get_tokenizer("ViT-H-14")(list(PROMPTS.values())).numpy()}
    pixels: dict[str, torch.Tensor] = {}
    for suffix, functional in kinds.items():
        transform.F = functional
        columns = [
            img_score.score(list(pictures().values()), prompt, cp=str(checkpoint)) for prompt in PROMPTS.values()
        ]
        arrays[f"scores{suffix}"] = np.array(columns, np.float32).T
        seen = {name: preprocess(picture) for name, picture in pictures().items()}
        parts = [subsample(pixel) for pixel in seen.values()]
        arrays[f"pixels{suffix}"] = np.stack([part for part, _ in parts])
        arrays[f"pixels_norm{suffix}"] = np.array([norm for _, norm in parts])
        pixels = pixels or seen
    transform.F = torchvision.transforms.functional

    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value.float()) for key, value in half.items())
    with torch.no_grad():
        outputs = model(torch.stack(list(pixels.values())), torch.from_numpy(arrays["tokens"]))
    arrays["image_features"] = outputs["image_features"].numpy()
    arrays["text_features"] = outputs["text_features"].numpy()
    gap = np.abs(arrays["image_features"] @ arrays["text_features"].T - arrays["scores"]).max()
    print(f"features against scores: {gap:.1e}")
    for picture_name, prompt_name in GRADIENTS:
        leaf = pixels[picture_name].clone().requires_grad_()
        tokens = torch.from_numpy(arrays["tokens"][[list(PROMPTS).index(prompt_name)]])
        outputs = model(leaf[None], tokens)
        score = (outputs["image_features"] @ outputs["text_features"].T)[0, 0]
        (gradient,) = torch.autograd.grad(score, leaf)
        part, norm = subsample(gradient)
        arrays |= {f"gradient_{picture_name}_{prompt_name}": part, f"gradient_norm_{picture_name}_{prompt_name}": norm}
    content = describe("hpsv2x", COMMAND) | {
        "bpe_sha256": sha256(Path(tokenizer.default_bpe())), "gradients": GRADIENTS, "config": CONFIG, "seed": 0,
        "tensors": len(state), "state_sha256": digest(state), "half_state_sha256": digest(half), "shapes": shapes_of(state),
    }  # fmt: skip
    return arrays, content


if __name__ == "__main__":
    main()
