"""Makes a thousand complete runs for timing `report`: ten algorithms, ten proxies and ten seeds, of the committed records.

``python benchmarks/thousand_runs.py OUT [--algorithms N] [--proxies N] [--seeds N]`` writes the run folders below OUT,
each with its pictures, in half a minute and 300 MB; then

``/usr/bin/time -v overopt-bench report OUT --out PAGE``

The records have six algorithms, seven proxies and three seeds. More algorithms, proxies and seeds are copies under
other names, whose scores are moved by a random number for each run and reward, so that no two seeds are equal. Their
pictures are those that the committed page shows, repeated until a grid is full; runs of a cell share them by hard links.
The numbers mean nothing.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import random
import re
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


class Source(NamedTuple):
    """What a run is called, and the records that it is made of."""

    name: str
    record: str
    tag: str = ""


ALGORITHMS = (
    Source("base", "base"), Source("ddpo", "ddpo"), Source("tdpo_r", "tdpo_r"), Source("best_of_n", "best_of_n"),
    Source("alignprop", "alignprop"), Source("tdpo", "tdpo"), Source("grpo", "ddpo"), Source("nft", "alignprop"),
    Source("ddpo", "ddpo", "lr3e-3"), Source("tdpo_r", "tdpo_r", "lr3e-3"),
)  # fmt: skip
PROXIES = (
    *((name, name) for name in (
        "aesthetic", "imagereward", "clipscore", "hpsv2", "pickscore", "jpeg_compressibility", "jpeg_incompressibility",
    )),
    ("mean:aesthetic+pickscore", "aesthetic"), ("min:aesthetic+hpsv2", "hpsv2"), ("mean:clipscore+hpsv2", "clipscore"),
)  # fmt: skip


@cache
def pictures(proxy: str, algorithm: str) -> list[list[Image.Image]]:
    """The committed page's pictures of a cell: for each point of the budget, one a prompt."""
    page = (REFERENCE / "report" / "index.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" class="strips">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    (strip,) = (strip for strip in json.loads(found[1]) if strip["proxy"] == proxy)
    rows = [row for prompt in strip["prompts"] for row in prompt["rows"] if row["algorithm"] == algorithm]
    decoded = [[_decoded(frame["src"]) for frame in row["frames"]] for row in rows]
    return [list(point) for point in zip(*decoded, strict=True)]


def _decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")


def draw_grids(folder: Path, events: list[dict[str, Any]], proxy: str, record: str) -> None:
    """Writes an image grid for every file that the evaluations name."""
    folder.mkdir(parents=True)
    scored = [event for event in events if event["event"] == "scores"]
    points = pictures(proxy, record if record not in ("base", "best_of_n") else "ddpo")
    for point, name in enumerate(dict.fromkeys(event["image_file"] for event in scored)):
        own = [event for event in scored if event["image_file"] == name]
        cells, columns, size = (max(event[key] for event in own) for key in ("first_cell", "columns", "cell"))
        cells += max(len(event["prompts"]) for event in own)
        grid = Image.new("RGB", (columns * size, -(-cells // columns) * size))
        shown = points[0 if record == "base" else point % len(points)]
        for k in range(cells):
            grid.paste(shown[k // 4 % len(shown)].resize((size, size)), (k % columns * size, k // columns * size))
        grid.save(folder / Path(name).name)


def moved(event: dict[str, Any], proxy: tuple[str, str], shifts: dict[str, float]) -> dict[str, Any]:
    """An event of another proxy's name and with each reward's scores moved."""
    new, old = proxy
    if event["event"] == "scores":
        scores = {name: [round(x + shifts[name], 6) for x in values] for name, values in event["scores"].items()}
        return event | {"scores": {new: scores[old], **scores}}
    if event["event"] == "eval":
        means = {key: value for key in event if (value := _moved_mean(event, key, shifts)) is not None}
        renamed = {key.replace(f"/{old}/", f"/{new}/"): (event | means)[key] for key in event if f"/{old}/" in key}
        return event | means | renamed
    return event


def _moved_mean(event: dict[str, Any], key: str, shifts: dict[str, float]) -> float | None:
    _, _, number = key.partition("/")
    reward, _, kind = number.rpartition("/")
    return event[key] + shifts[reward] if kind == "mean" and reward in shifts and event[key] is not None else None


def write_run(out: Path, algorithm: Source, proxy: tuple[str, str], seed: int, grids: dict[str, Path]) -> None:
    """Writes one complete run."""
    new, old = proxy
    record = algorithm.record if (REFERENCE / "mini" / old / algorithm.record).is_dir() else "tdpo"
    source = REFERENCE / "mini" / old / record / f"seed{seed % 3}"
    tag = f"-{algorithm.tag}" if algorithm.tag else ""
    folder = out / "mini" / new.replace(":", "-") / algorithm.name / f"seed{seed}{tag}"
    folder.mkdir(parents=True)
    content = json.loads((source / "config.json").read_text())
    content["config"] |= {"algo": algorithm.name, "proxy": new, "seed": seed, "tag": algorithm.tag}
    (folder / "config.json").write_text(json.dumps(content, indent=1))
    events = [json.loads(line) for line in (source / "metrics.jsonl").read_text().splitlines()]
    rng = random.Random(f"{algorithm} {new} {seed}")
    rewards = {name for event in events if event["event"] == "scores" for name in event["scores"]} or {old, "human"}
    shifts = {name: rng.gauss(0, 0.03) for name in sorted(rewards)}
    lines = [json.dumps(moved(event, proxy, shifts)) for event in events]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "status.json").write_text((source / "status.json").read_text())
    if any(event["event"] == "scores" for event in events):
        if (cell := f"{old} {record}") not in grids:
            draw_grids(folder / "images", events, old, record)
            grids[cell] = folder / "images"
        else:
            (folder / "images").mkdir()
            for file in grids[cell].iterdir():
                os.link(file, folder / "images" / file.name)


def main() -> None:
    """Writes the runs that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("algorithms", "proxies", "seeds"):
        parser.add_argument(f"--{name}", type=int, default=10, choices=range(1, 11), metavar="1-10")
    asked = parser.parse_args()
    grids: dict[str, Path] = {}
    cells = product(ALGORITHMS[: asked.algorithms], PROXIES[: asked.proxies], range(asked.seeds))
    for algorithm, proxy, seed in cells:
        write_run(asked.out, algorithm, proxy, seed, grids)


if __name__ == "__main__":
    main()
