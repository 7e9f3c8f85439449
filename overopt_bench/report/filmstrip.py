"""The same prompt and noise along the budget, algorithm by algorithm, cut out of the runs' image grids."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

from PIL import Image

from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run

PROMPTS = 4  # a page of all proxies stays below ten megabytes
STILL_COLUMNS = 10  # pictures of a still beside each other, at most


def filmstrips(group: Group) -> list[dict[str, Any]]:
    """For each proxy: prompts, and per prompt and algorithm the frames (first seed) with their scores.

    A frame is {"queries", "src" (a PNG as data URI), "scores" (the proxy's and each gold's, in the order of the
    strip's "rewards"; None where the run did not record it)}.
    """
    strips = []
    for proxy in group.proxies():
        runs = [group.of(proxy, label)[0] for label in group.trained(proxy)]
        runs = [run for run in runs if _rows(run)]
        if not runs:
            continue
        golds = group.golds(proxy)
        prompts = list(dict.fromkeys(_rows(runs[0])[0]["prompts"]))[:PROMPTS]
        shown = []
        for prompt in prompts:
            rows = [_strip(run, prompt, [proxy, *golds]) for run in runs]
            if rows := [row for row in rows if row["frames"]]:
                shown.append({"prompt": prompt, "rows": rows})
        names = [f"proxy {proxy}", *(f"{group.role(gold)} {gold}" for gold in golds)]
        if shown:
            strips.append({"proxy": proxy, "rewards": names, "prompts": shown})
    return strips


def _rows(run: Run) -> list[dict[str, Any]]:
    return [e for e in run.of("scores") if e["split"] == "train"]


def _strip(run: Run, prompt: str, rewards: list[str]) -> dict[str, Any]:
    frames = []
    for row in _rows(run):
        k = row["prompts"].index(prompt)
        image = cell(run, row, k)
        if image is not None:
            scores = [_score(row, reward, k) for reward in rewards]
            frames.append({"queries": row["queries"], "src": _data_uri(image), "scores": scores})
    return {"algorithm": run.label, "seed": run.config["seed"], "frames": frames}


def _score(row: dict[str, Any], reward: str, k: int) -> float | None:
    """Image k's score, rounded; None where the reward was not recorded or is not finite, which JSON cannot say."""
    value = row["scores"].get(reward, [math.nan] * (k + 1))[k]
    return round(value, 3) if math.isfinite(value) else None


def cell(run: Run, row: dict[str, Any], k: int) -> Image.Image | None:
    """Image k of a "scores" event, 128 pixels wide at most; None where the file is gone or damaged.

    Nor is anything read outside the run's folder, or cut outside of the grid, whatever the record says.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a grid of XL's images is no attack, though as large
    try:
        file, size = (run.folder / row["image_file"]).resolve(), int(row["cell"])
        y, x = divmod(row["first_cell"] + k, row["columns"])
        if not file.is_relative_to(run.folder.resolve()):
            return None
        with Image.open(file) as grid:
            if min(x, y, size - 1) < 0 or (x + 1) * size > grid.width or (y + 1) * size > grid.height:
                return None
            picture = grid.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)).convert("RGB")
    except (KeyError, TypeError, ValueError, ZeroDivisionError):  # a row that does not say where the image is
        return None
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
    """One image of a still.

    Attributes:
        prompt: what it should show.
        when: "start", "peak" (of which gold, where there are several) or "end".
        queries: how many were spent by then.
        proxy: its score by the proxy.
        golds: its score by each gold of the run.
        image: the picture.
    """

    prompt: str
    when: str
    queries: int
    proxy: float
    golds: dict[str, float]
    image: Image.Image


def stills(group: Group, proxy: str) -> dict[str, list[Still]]:
    """Per algorithm, the first seed's images at the start, where the mean of each gold is highest, and at the end."""
    runs = [group.of(proxy, label)[0] for label in group.trained(proxy)]
    runs = [run for run in runs if len(_rows(run)) > 1]
    golds = [gold for gold in group.golds(proxy) if all(run.recorded(gold) for run in runs)]
    found: dict[str, list[Still]] = {}
    for run in runs:
        rows = _rows(run)
        points = [("start", rows[0])]
        for gold in golds:
            top = max(rows, key=lambda row: sum(row["scores"][gold]))
            points.append((f"peak of {gold}" if len(golds) > 1 else "peak", top))
        points.append(("end", rows[-1]))
        prompts = list(dict.fromkeys(rows[0]["prompts"]))[: max(1, STILL_COLUMNS // len(points))]
        every = [_still(run, row, prompt, when, proxy, golds) for prompt in prompts for when, row in points]
        shown = [still for still in every if still is not None]
        if len(shown) == len(every):
            found[run.label] = shown
    return found


def _still(run: Run, row: dict[str, Any], prompt: str, when: str, proxy: str, golds: list[str]) -> Still | None:
    k, scores = row["prompts"].index(prompt), row["scores"]
    image = cell(run, row, k)
    if image is None:
        return None
    return Still(prompt, when, row["queries"], scores[proxy][k], {gold: scores[gold][k] for gold in golds}, image)
