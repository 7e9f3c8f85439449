"""Images of a trained policy, drawn by the very sampler that trained it."""

from __future__ import annotations

import csv
import hashlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.commands.trained import trained_policy
from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.adapter import adapter_file
from overopt_bench.errors import RunError, UserError
from overopt_bench.files import atomic
from overopt_bench.lazy import torch
from overopt_bench.recording.identity import read_config
from overopt_bench.registry import get_suite
from overopt_bench.seeding import stable_seed
from overopt_bench.text import csv_text
from overopt_bench.weights import digest

if TYPE_CHECKING:
    from torch import Tensor

    from overopt_bench.diffusion.policy import DiffusionPolicy

INDEX = "index.csv"
COLUMNS = ("file", "prompt", "seed", "index", "torch_seed", "run")


@dataclass(frozen=True)
class Drawing:
    """One image to draw: the ``index``-th of a prompt. All of its noise comes from ``torch_seed``."""

    prompt: str
    seed: int
    index: int

    @property
    def torch_seed(self) -> int:
        """Depends on nothing but (seed, prompt, index); a ``torch.Generator`` seeded with it draws the image's noise."""
        return stable_seed("sample", self.seed, self.prompt, self.index)

    def noise(self, steps: int, shape: Sequence[int]) -> Tensor:
        """``[steps + 1, *shape]``: the initial latent and then each step's, as diffusers draws them from a generator."""
        generator = torch.Generator().manual_seed(self.torch_seed)
        return torch.stack([torch.randn(tuple(shape), generator=generator) for _ in range(steps + 1)])


def plan(prompts: Sequence[str], count: int, seed: int) -> list[Drawing]:
    """``count`` drawings of each prompt; a prompt that is given twice is drawn once, which stderr says.

    Raises:
        UserError: where there is no prompt, an empty one or one that is no text, or count is not positive.
    """
    if count < 1 or not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("give at least one --prompt that is not empty and a --count of at least 1")
    for prompt in prompts:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise UserError(f"--prompt {prompt!r} is not UTF-8") from None
    different = list(dict.fromkeys(prompts))
    if len(different) < len(prompts):
        twice = next(prompt for prompt in different if prompts.count(prompt) > 1)
        print(
            f"warning: --prompt {twice!r} is given twice and drawn once, for the images are the same", file=sys.stderr
        )
    return [Drawing(prompt, seed, k) for prompt in different for k in range(count)]


def sample_images(policy: DiffusionPolicy, drawings: Sequence[Drawing]) -> Iterator[tuple[Sequence[Drawing], Tensor]]:
    """Micro-batches of drawings and their images ``[B, 3, H, W]`` in [0, 1].

    Raises:
        RunError: for images that are not finite.
    """
    from overopt_bench.evaluation.sampler import PolicySampler  # it needs torch, and a refusal does not

    for start in range(0, len(drawings), policy.micro_batch):
        part = drawings[start : start + policy.micro_batch]
        noise = torch.stack([drawing.noise(policy.num_steps, policy.latent_shape) for drawing in part], 1)
        try:
            yield part, PolicySampler(policy).draw(noise, [drawing.prompt for drawing in part], with_kl=False).images
        except FloatingPointError as error:
            raise RunError(f"{error}, in {str(policy.dtype).removeprefix('torch.')}") from None


def draw(run: Path, prompts: Sequence[str], count: int, seed: int, out: Path, runtime: Runtime) -> list[Path]:
    """One PNG file an image, and ``index.csv``, which says what each file is; rows of earlier calls are kept.

    Raises:
        UserError: where the run cannot be sampled, or the folder cannot be written.
        RunError: where the adapter or an image is not finite.
    """
    config, drawings = read_config(run), plan(prompts, count, seed)
    read_index(out / INDEX)  # refuses another table before anything is drawn
    from PIL import Image  # only now, when nothing can be refused any more

    policy = trained_policy(run, config, get_suite(config.suite, runtime.weights, config.model), runtime)
    origin = f"{config.config_hash()} {digest(adapter_file(run / 'adapter'))}"
    rows = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for part, images in sample_images(policy, drawings):
            pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            for drawing, picture in zip(part, pixels, strict=True):
                name = file_name(drawing, origin)
                Image.fromarray(picture).save(out / name)
                rows[name] = {
                    "file": name, "prompt": csv_text(drawing.prompt), "seed": str(seed), "index": str(drawing.index),
                    "torch_seed": str(drawing.torch_seed), "run": csv_text(str(run)),
                }  # fmt: skip
            write_index(out / INDEX, rows)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from None
    return [out / name for name in rows]


def file_name(drawing: Drawing, origin: str) -> str:
    """Name an image as no other, on disks that ignore case too: what can be read of the prompt, and a hash.

    Args:
        drawing: the image's prompt, seed and number.
        origin: what stands for the policy, so that runs that are sampled into one folder keep their own images.
    """
    readable = re.sub(r"[^a-z0-9]+", "-", drawing.prompt.lower())[:40].strip("-")
    mark = hashlib.sha256(f"{origin}\n{drawing.prompt}".encode()).hexdigest()[:12]
    return "-".join([*([readable] if readable else []), mark, str(drawing.seed), str(drawing.index)]) + ".png"


def read_index(path: Path) -> dict[str, dict[str, str]]:
    """The rows of an ``index.csv`` by file; none where there is no such file.

    Raises:
        UserError: where it cannot be read, or is another table.
    """
    refused = UserError(f"{path} exists and is not a table that sample wrote; use another --out")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True)
            columns, rows = tuple(table.fieldnames or ()), list(table)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (UnicodeDecodeError, csv.Error):
        raise refused from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if columns != COLUMNS or any(row.keys() != {*COLUMNS} for row in rows):
        raise refused
    return {row["file"]: row for row in rows}


def write_index(path: Path, rows: Mapping[str, Mapping[str, str]]) -> None:
    """Put rows into the table at ``path``, each in the place of the one of the same file where there is one."""
    merged = {**read_index(path), **rows}
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(merged.values())
