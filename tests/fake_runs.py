"""Synthetic run folders in the recorded schema, with curves whose peak and drop are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

POINTS = (0, 100, 200, 300, 400)
GOLD = {"ddpo": (0.5, 0.6, 0.7, 0.6, 0.5), "tdpo_r": (0.5, 0.6, 0.7, 0.75, 0.8), "base": (0.5,) * 5}
IMAGES, CELL, COLUMNS = 16, 8, 8


def write_run(
    out: Path, algo: str = "ddpo", proxy: str = "aesthetic", seed: int = 0, budget: int = 400, noise: float = 0.01,
    state: str = "complete", params: dict[str, float] | None = None,
) -> Path:  # fmt: skip
    """One run of ``POINTS`` evaluations whose gold follows ``GOLD[algo]`` and whose proxy rises by 1 a point."""
    folder = out / "mini" / proxy / algo / f"seed{seed}"
    (folder / "images").mkdir(parents=True)
    config = {
        "algo": algo, "proxy": proxy, "gold": ["human"], "suite": "mini", "seed": seed, "budget": budget,
        "budget_unit": "queries", "params": params or {}, "num_steps": 10, "guidance_scale": 1.5, "eta": 1.0, "lora_rank": 8,
        "lora_alpha": 8, "eval_points": 5, "eval_images": IMAGES, "eval_seed": 0, "tag": "",
    }  # fmt: skip
    content = {"schema": 1, "config": config, "config_hash": "x", "provenance": {"weights": {"unet": "abc"}}}
    (folder / "config.json").write_text(json.dumps(content))
    rng = np.random.default_rng(seed)
    quirks = rng.normal(0, 0.1, IMAGES)  # what a prompt and noise bring along at every point
    lines = []
    for point, (queries, gold) in enumerate(zip(POINTS, GOLD[algo], strict=True)):
        scores = {"human": gold + quirks + rng.normal(0, noise, IMAGES), proxy: point + quirks}
        prompts = [f"prompt {k // 4}" for k in range(IMAGES)]
        where = {"queries": queries, "nfe": queries * 40, "seconds": queries / 10, "point": point}
        name = f"images/{queries:07d}.png"
        pixels = np.full((CELL * 2, CELL * COLUMNS, 3), 40 * point, np.uint8)
        Image.fromarray(pixels).save(folder / name)
        row = {
            "train/path_kl/mean": float(point**2),
            "train/sqrt_kl": float(point),
            "train/diversity": 0.5 - 0.1 * point,
        }
        for reward, values in scores.items():
            row |= {
                f"train/{reward}/mean": float(values.mean()),
                f"train/{reward}/stderr": 0.01,
                f"train/{reward}/count": IMAGES,
            }
        detail = {
            "split": "train", "prompts": prompts, "index": [k % 4 for k in range(IMAGES)],
            "scores": {k: v.tolist() for k, v in scores.items()}, "path_kl": [0.0] * IMAGES, "image_file": name,
            "first_cell": 0, "columns": COLUMNS, "cell": CELL,
        }  # fmt: skip
        lines += [{"event": "scores", **where, **detail}, {"event": "eval", **where, **row}]
        if algo == "tdpo_r":
            layer = {
                "layer": "0",
                "units": 10,
                "dormant": {"0": point, "0.025": point, "0.1": point + 1},
                "persistence": {},
            }
            lines.append(
                {"event": "critic", **where, "round": point, "when": "record", "layers": [layer], "all": layer}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": None, "queries": POINTS[-1]}))
    return folder
