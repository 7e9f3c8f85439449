"""The same prompt and noise along the budget, algorithm by algorithm, cut out of the runs' image grids."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from overopt_bench.report.load import Group, Run

PROMPTS = 6  # prompts shown for each proxy; more would make the page heavy


def filmstrips(group: Group) -> list[dict[str, Any]]:
    """For each proxy: prompts, and per prompt and algorithm the frames (first seed) with their scores.

    A frame is {"queries", "src" (a PNG as data URI), "proxy", "gold"}.
    """
    strips = []
    for proxy in group.proxies():
        runs = [group.of(proxy, label)[0] for label in group.labels(proxy) if label not in ("base", "best_of_n")]
        runs = [run for run in runs if _rows(run)]
        if not runs:
            continue
        first = _rows(runs[0])[0]
        prompts = list(dict.fromkeys(first["prompts"]))[:PROMPTS]
        shown = [{"prompt": p, "rows": [_strip(run, p, proxy, group.gold) for run in runs]} for p in prompts]
        strips.append({"proxy": proxy, "gold": group.gold, "prompts": shown})
    return strips


def _rows(run: Run) -> list[dict[str, Any]]:
    return [e for e in run.of("scores") if e["split"] == "train"]


def _strip(run: Run, prompt: str, proxy: str, gold: str) -> dict[str, Any]:
    frames = []
    for row in _rows(run):
        k = row["prompts"].index(prompt)
        image = _cell(run, row, k)
        if image is not None:
            frames.append({
                "queries": row["queries"], "src": image,
                "proxy": round(row["scores"][proxy][k], 3), "gold": round(row["scores"][gold][k], 3),
            })  # fmt: skip
    return {"algorithm": run.label, "seed": run.config["seed"], "frames": frames}


def _cell(run: Run, row: dict[str, Any], k: int) -> str | None:
    """Image k of a "scores" event as a PNG data URI; None where the file is gone."""
    try:
        grid = Image.open(run.folder / row["image_file"])
    except OSError:
        return None
    y, x = divmod(row["first_cell"] + k, row["columns"])
    size = row["cell"]
    cell = grid.crop((x * size, y * size, (x + 1) * size, (y + 1) * size))
    if size > 128:
        cell = cell.resize((128, 128), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    cell.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
