"""Synthetic run folders in the recorded schema, with curves whose peak and drop are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POINTS = (0, 100, 200, 300, 400)
GOLD = {"ddpo": (0.5, 0.6, 0.7, 0.6, 0.5), "tdpo_r": (0.5, 0.6, 0.7, 0.75, 0.8), "base": (0.5,) * 5}
IMAGES, CELL, COLUMNS = 16, 8, 8
PROMPTS = ("prompt 0", "prompt 1", "prompt 2", "prompt 3")
PROVENANCE = {"weights": {"unet": "abc"}, "rewards": {"human": "h", "aesthetic": "a"}}


def write_run(
    out: Path, algo: str = "ddpo", proxy: str = "aesthetic", seed: int = 0, budget: int = 400, noise: float = 0.01,
    state: str = "complete", params: dict[str, float] | None = None, gold: Sequence[str] = ("human",),
    others: Mapping[str, Sequence[float]] | None = None, sessions: Sequence[Mapping[str, Any]] = (),
    folder: Path | None = None, reason: str | None = None, prompts: Sequence[str] = PROMPTS,
    points: Sequence[int] = POINTS, **settings: Any,
) -> Path:  # fmt: skip
    """One run of five evaluations, at ``points``, whose gold follows ``GOLD[algo]`` and whose proxy rises by 1 a point.

    Args:
        gold: the rewards that the run asked for.
        others: the curves of more rewards that it recorded.
        sessions: lines of ``sessions.jsonl``; where there are some, the run has today's schema.
        folder: instead of the usual one.
        reason: why it is in its state.
        prompts: of the training split.
        points: queries of the evaluations.
        settings: more of its configuration.
    """
    folder = folder or out / "mini" / proxy / algo / f"seed{seed}"
    (folder / "images").mkdir(parents=True)
    config = {
        "algo": algo, "proxy": proxy, "gold": list(gold), "suite": "mini", "seed": seed, "budget": budget,
        "budget_unit": "queries", "params": params or {}, "num_steps": 10, "guidance_scale": 1.5, "eta": 1.0, "lora_rank": 8,
        "lora_alpha": 8, "eval_points": 5, "eval_images": IMAGES, "eval_seed": 0, "tag": "",
        **settings,
    }  # fmt: skip
    content: dict[str, Any] = {"schema": 1, "config": config, "config_hash": "x", "provenance": PROVENANCE}
    if sessions:
        content = {"schema": 2, "config": config, "config_hash": "x"}
        (folder / "sessions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sessions))
    (folder / "config.json").write_text(json.dumps(content))
    rng = np.random.default_rng(seed)
    quirks = rng.normal(0, 0.1, IMAGES)  # what a prompt and noise bring along at every point
    lines = []
    curves = {"human": GOLD.get(algo, GOLD["ddpo"]), **(others or {})}
    for point, queries in enumerate(points):
        scores = {name: curve[point] + quirks + rng.normal(0, noise, IMAGES) for name, curve in curves.items()}
        scores[proxy] = point + quirks
        name = f"images/{queries:07d}.png"
        pixels = np.full((CELL * 2, CELL * COLUMNS, 3), 40 * point, np.uint8)
        Image.fromarray(pixels).save(folder / name)
        lines += evaluation(point, queries, scores, prompts, name)
        if algo == "tdpo_r":
            lines.append(critic(point, queries))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": state, "reason": reason, "queries": points[-1]}))
    return folder


def where(point: int, queries: int) -> dict[str, float]:
    """How far the run is at an evaluation."""
    return {"queries": queries, "nfe": queries * 40, "seconds": queries / 10, "point": point}


def evaluation(
    point: int, queries: int, scores: Mapping[str, NDArray[np.float64]], prompts: Sequence[str], image_file: str
) -> list[dict[str, Any]]:
    """The two lines of an evaluation: image by image, and means."""
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
        "split": "train", "prompts": [prompts[k // 4 % len(prompts)] for k in range(IMAGES)], "index": [k % 4 for k in range(IMAGES)],
        "scores": {k: v.tolist() for k, v in scores.items()}, "path_kl": [0.0] * IMAGES, "image_file": image_file,
        "first_cell": 0, "columns": COLUMNS, "cell": CELL,
    }  # fmt: skip
    here = where(point, queries)
    return [{"event": "scores", **here, **detail}, {"event": "eval", **here, **row}]


def critic(point: int, queries: int) -> dict[str, Any]:
    """The line of a critic with one layer of ten units, of which more are dormant at each point."""
    layer = {
        "layer": "0",
        "units": 10,
        "dormant": {"0": point, "0.025": point, "0.1": point + 1},
        "persistence": {},
    }
    here = where(point, queries)
    return {"event": "critic", **here, "round": point, "when": "record", "layers": [layer], "all": layer}
