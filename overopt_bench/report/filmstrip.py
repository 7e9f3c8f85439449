"""The same prompt and noise along the budget, algorithm by algorithm, cut out of the runs' image grids."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from overopt_bench.report.columns import Place, Scored
from overopt_bench.report.groups import Group
from overopt_bench.report.load import Run

SPLIT = "train"
PROMPTS = 4  # of a proxy
FRAMES = 350  # of a prompt on a page, shared among its runs: four prompts of them are 3.3 MB in the mini suite
FEWEST = 3  # frames of a run, however many runs there are
STILL_COLUMNS = 10  # pictures of a still beside each other, at most
SIDE = 128  # of a picture on the page, in pixels, at most
LOSSLESS_SIDE = 64  # up to which a picture is small enough as a PNG


@dataclass
class Album:
    """The pictures that a page shows, each grid decoded once for all that is cut out of it.

    Attributes:
        decoded: how many grids were opened.
        cells: what was cut out, by run folder, grid and cell; None where the file is gone or damaged.
    """

    decoded: int = 0
    cells: dict[tuple[Path, str, int], Image.Image | None] = field(default_factory=dict)

    def pictures(self, run: Run, point: Scored) -> dict[str, Image.Image | None]:
        """The first image of each of a point's first prompts, by prompt."""
        first = {prompt: point.prompts.index(prompt) for prompt in _prompts(point)}
        place = point.place
        if place is None:
            return dict.fromkeys(first)
        keys = {prompt: (run.folder, place.file, place.first + k) for prompt, k in first.items()}
        if not self.cells.keys() >= {*keys.values()}:
            self.decoded += 1
            self.cells.update(zip(keys.values(), _cut(run.folder, place, first.values()), strict=True))
        return {prompt: self.cells[key] for prompt, key in keys.items()}


def _prompts(point: Scored) -> list[str]:
    return list(dict.fromkeys(point.prompts))[:PROMPTS]


def _cut(folder: Path, place: Place, images: Iterable[int]) -> list[Image.Image | None]:
    """Some images of a grid, 128 pixels wide at most; None where the file is gone or damaged.

    Nor is anything read outside the run's folder, or cut outside of the grid, whatever the record says.
    """
    wanted = list(images)
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # a grid of XL's images is no attack, though as large
    try:
        file = (folder / place.file).resolve()
        if not file.is_relative_to(folder.resolve()):
            return [None] * len(wanted)
        with Image.open(file) as grid:
            return [_cell(grid, place, k) for k in wanted]
    except (
        OSError,
        SyntaxError,
        ValueError,
    ):  # gone, cut off, or no picture: Pillow says broken PNG with a SyntaxError
        return [None] * len(wanted)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _cell(grid: Image.Image, place: Place, k: int) -> Image.Image | None:
    size = place.size
    if place.columns < 1:
        return None
    y, x = divmod(place.first + k, place.columns)
    if min(x, y, size - 1) < 0 or (x + 1) * size > grid.width or (y + 1) * size > grid.height:
        return None
    picture = grid.crop((x * size, y * size, (x + 1) * size, (y + 1) * size)).convert("RGB")
    return picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS) if size > SIDE else picture


def filmstrips(group: Group, album: Album) -> list[dict[str, Any]]:
    """For each proxy: prompts, and per prompt and algorithm the frames (of one seed) with their scores.

    A frame is {"queries", "src" (a picture as data URI), "scores" (the proxy's and each gold's, in the order of the
    strip's "rewards"; None where the run did not record it)}. Where a page has very many runs, each has fewer frames.
    """
    shown = {proxy: _pictured(group, proxy) for proxy in group.proxies()}
    frames = max(FEWEST, FRAMES // max(1, sum(map(len, shown.values()))))
    strips = []
    for proxy, runs in shown.items():
        golds = group.golds(proxy)
        prompts = _prompts(runs[0].points[SPLIT][0]) if runs else []
        rows = [_rows(run, [proxy, *golds], frames, album) for run in runs]
        by_prompt = [
            {"prompt": prompt, "rows": [kept for row in rows if (kept := row | {"frames": row["frames"].get(prompt)})["frames"]]}
            for prompt in prompts
        ]  # fmt: skip
        names = [f"proxy {proxy}", *(f"{group.role(gold)} {gold}" for gold in golds)]
        if by_prompt := [prompt for prompt in by_prompt if prompt["rows"]]:
            strips.append({"proxy": proxy, "rewards": names, "prompts": by_prompt})
    return strips


def _pictured(group: Group, proxy: str, points: int = 1) -> list[Run]:
    """A seed of each algorithm that trains, of those that scored images at so many points: the first that has pictures."""
    seeds = [group.of(proxy, label) for label in group.trained(proxy)]
    runs = [next(filter(_has_pictures, own), own[0]) for own in seeds]
    return [run for run in runs if len(run.points.get(SPLIT, ())) >= points]


def _has_pictures(run: Run) -> bool:
    """Whether the images of the last evaluation are there: records are kept, and committed, without them."""
    points = run.points.get(SPLIT, ())
    place = points[-1].place if points else None
    return place is not None and os.path.isfile(run.folder / place.file)  # Path.is_file raises where a name is too long


def _rows(run: Run, rewards: list[str], most: int, album: Album) -> dict[str, Any]:
    """A run's frames by prompt, evenly along its points where it has more than ``most``."""
    points = run.points[SPLIT]
    chosen = np.unique(np.linspace(0, len(points) - 1, min(most, len(points))).round().astype(int))
    frames: dict[str, list[dict[str, Any]]] = {}
    for point in (points[k] for k in chosen):
        for prompt, image in album.pictures(run, point).items():
            if image is not None:
                scores = [point.score(reward, point.prompts.index(prompt)) for reward in rewards]
                frame = {"queries": point.queries, "src": _data_uri(image), "scores": scores}
                frames.setdefault(prompt, []).append(frame)
    return {"algorithm": run.label, "seed": run.config["seed"], "frames": frames}


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    kind = "png" if image.width <= LOSSLESS_SIDE else "webp"
    image.save(buffer, format=kind, quality=80)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


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


def stills(group: Group, proxy: str, album: Album) -> dict[str, list[Still]]:
    """Per algorithm, the images of one seed at the start, where the mean of each gold is highest, and at the end."""
    runs = _pictured(group, proxy, 2)
    golds = [gold for gold in group.golds(proxy) if all(run.recorded(gold) for run in runs)]
    found: dict[str, list[Still]] = {}
    for run in runs:
        rows = run.points[SPLIT]
        points = [("start", rows[0])]
        for gold in golds:
            top = max(rows, key=lambda row: _scores(row, gold).sum())
            points.append((f"peak of {gold}" if len(golds) > 1 else "peak", top))
        points.append(("end", rows[-1]))
        prompts = _prompts(rows[0])[: max(1, STILL_COLUMNS // len(points))]
        every = [_still(run, row, prompt, when, proxy, golds, album) for prompt in prompts for when, row in points]
        shown = [still for still in every if still is not None]
        if len(shown) == len(every):
            found[run.label] = shown
    return found


def _scores(point: Scored, reward: str) -> np.ndarray:
    scores = point.of(reward)
    return np.full(len(point.prompts), np.nan) if scores is None else scores


def _still(run: Run, point: Scored, prompt: str, when: str, proxy: str, golds: list[str], album: Album) -> Still | None:
    image = album.pictures(run, point).get(prompt)
    if image is None:
        return None
    k = point.prompts.index(prompt)
    scores = {gold: float(_scores(point, gold)[k]) for gold in golds}
    return Still(prompt, when, point.queries, float(_scores(point, proxy)[k]), scores, image)
