"""The model card and its figures, written from what was measured; nothing in it is typed by hand but the prose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from overopt_bench.registry import get_reward, rewards
from overopt_bench.suites.mini import MiniSuite
from overopt_bench.suites.mini.recipe.data import PACKAGES, EmojiSet, augment
from overopt_bench.suites.mini.recipe.quality import reconstruct, save_grid
from overopt_bench.suites.mini.recipe.samples import Sampler
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import generator_for
from overopt_bench.types import Reward


def suite_rewards(suite: MiniSuite) -> dict[str, Reward]:
    """Every reward of the suite but the truth."""
    return {name: get_reward(name, suite) for name in rewards.names(suite.name) if name != suite.gold}


def write(s: Settings, data: EmojiSet, sampler: Sampler, facts: dict[str, Any], out: Path) -> None:
    """``README.md`` (the card), ``card.json`` (its numbers) and the sample grids beside the weights."""
    g = generator_for(s.seed, "card grids")
    animals = [n for n, animal in zip(data.names, data.is_animal, strict=True) if animal][: 16 * 6]
    columns = min(16, len(animals))
    save_grid(sampler(animals, g, guidance=s.guidance_scale), columns, out / "samples.png")
    pick = torch.randperm(len(data.images), generator=g)[:columns]
    real = augment(data.images[pick].float() / 255, g, 0.0)
    save_grid(torch.cat([real, reconstruct(sampler.pipe.vae, real)]), columns, out / "reconstructions.png")
    counts = {"drawings": len(data.images), "names": len(data.names), "animals": sum(data.is_animal)}
    render({**facts, **counts}, s, out)


def render(facts: dict[str, Any], s: Settings, out: Path) -> None:
    """``card.json`` and ``README.md`` from the facts and the sizes of the files in ``out``."""
    sizes = {str(f.relative_to(out)): f.stat().st_size for f in sorted(out.rglob("*.safetensors"))}
    facts = {**facts, "bytes": sizes}
    (out / "card.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("card.md.j2").render(facts=facts, s=s, packages=PACKAGES, total=sum(sizes.values()))
    (out / "README.md").write_text(text, encoding="utf-8")
