"""The same prompt and noise along the budget, algorithm by algorithm, cut out of the runs' image grids."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from overopt_bench.report.load import REFERENCES, Group, Run

PROMPTS = 4  # a page of all proxies stays below ten megabytes


def filmstrips(group: Group) -> list[dict[str, Any]]:
    """For each proxy: prompts, and per prompt and algorithm the frames (first seed) with their scores.

    A frame is {"queries", "src" (a PNG as data URI), "proxy", "gold"}.
    """
    strips = []
    for proxy in group.proxies():
        runs = [group.of(proxy, label)[0] for label in group.labels(proxy) if label not in REFERENCES]
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
        image = cell(run, row, k)
        if image is not None:
            frames.append({
                "queries": row["queries"], "src": _data_uri(image),
                "proxy": round(row["scores"][proxy][k], 3), "gold": round(row["scores"][gold][k], 3),
            })  # fmt: skip
    return {"algorithm": run.label, "seed": run.config["seed"], "frames": frames}


def cell(run: Run, row: dict[str, Any], k: int) -> Image.Image | None:
    """Image k of a "scores" event, 128 pixels wide at most; None where the file is gone or damaged."""
    y, x = divmod(row["first_cell"] + k, row["columns"])
    size = row["cell"]
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a grid of XL's images is no attack, though as large
    try:
        with Image.open(run.folder / row["image_file"]) as grid:
            picture = grid.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)).convert("RGB")
    except (OSError, SyntaxError):  # gone, cut off, or no picture: Pillow says broken PNG with a SyntaxError
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return picture.resize((128, 128), Image.Resampling.LANCZOS) if size > 128 else picture


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class Still:
    """One image of a still: which prompt, when ("start", "peak" or "end"), its scores, and the picture."""

    prompt: str
    when: str
    queries: int
    proxy: float
    gold: float
    image: Image.Image


def stills(group: Group, proxy: str, prompts: int = 3) -> dict[str, list[Still]]:
    """Per algorithm, the first seed's images at the start, where its mean gold is highest, and at the end."""
    found: dict[str, list[Still]] = {}
    for label in group.labels(proxy):
        run = group.of(proxy, label)[0]
        rows = _rows(run)
        if len(rows) < 2 or label in REFERENCES:
            continue
        top = max(range(len(rows)), key=lambda k: sum(rows[k]["scores"][group.gold]))
        shown = []
        for prompt in list(dict.fromkeys(rows[0]["prompts"]))[:prompts]:
            for when, row in (("start", rows[0]), ("peak", rows[top]), ("end", rows[-1])):
                k = row["prompts"].index(prompt)
                image, scores = cell(run, row, k), row["scores"]
                if image is not None:
                    shown.append(Still(prompt, when, row["queries"], scores[proxy][k], scores[group.gold][k], image))
        if len(shown) == 3 * prompts:
            found[label] = shown
    return found
