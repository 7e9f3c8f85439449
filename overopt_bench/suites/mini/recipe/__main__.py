"""``python -m overopt_bench.suites.mini.recipe``: make every weight of the mini suite.

Interrupt it at any moment; the same command goes on. Needs ``npm`` on the path and the ``recipe`` extra.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from safetensors.torch import save_file
from torch import nn

from overopt_bench.rewards.human import Human
from overopt_bench.rewards.scorers import CrossAttentionScorer, SimilarityScorer
from overopt_bench.suites.mini import WEIGHTS, MiniSuite
from overopt_bench.suites.mini.recipe import card, generator, judge, proxies, quality
from overopt_bench.suites.mini.recipe.data import EmojiSet, load_emoji
from overopt_bench.suites.mini.recipe.samples import Sampler
from overopt_bench.suites.mini.recipe.settings import Settings
from overopt_bench.suites.mini.recipe.training import generator_for

Stage = Literal["models", "judge", "proxies"]


def split_prompts(data: EmojiSet, s: Settings) -> dict[str, list[str]]:
    """Training animals, other animals, other objects, and the training animals in a named style."""
    g = generator_for(s.seed, "splits")
    animals = [n for n, animal in zip(data.names, data.is_animal, strict=True) if animal]
    objects = [n for n, animal in zip(data.names, data.is_animal, strict=True) if not animal] or animals
    order = torch.randperm(len(animals), generator=g).tolist()
    k = min(s.split_size, max(1, len(animals) // 3))
    train = [animals[i] for i in order[:k]]
    tuning = [animals[i] for i in order[2 * k : 3 * k]]  # settings are searched on these, never reported
    styles = ("3d", "flat", "plain", "shaded")
    return {
        "train": train,
        "heldout": [animals[i] for i in order[k : 2 * k]],
        "heldout_objects": [objects[i] for i in torch.randperm(len(objects), generator=g).tolist()[:k]],
        "heldout_style": [f"{styles[i % 4]} {name}" for i, name in enumerate(train)],
        "tuning": tuning,
    }


def half(module: nn.Module) -> dict[str, torch.Tensor]:
    """A state dict in half precision, as it is shipped."""
    return {k: v.half().contiguous() for k, v in module.state_dict().items() if v.is_floating_point()}


def build(s: Settings, cache: Path, work: Path, out: Path, start: Stage = "models") -> None:
    """All stages from ``start`` on; each reads what the one before has *written*, so the shipped rounding is in the loop.

    Raises:
        UserError: where ``start`` needs files that ``out`` does not have.
    """
    work.mkdir(parents=True, exist_ok=True)
    (out / "rewards").mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    data = load_emoji(cache, names=s.names)
    suite = MiniSuite(out)
    facts: dict[str, Any] = {}
    if start == "models":
        make_models(s, data, work, out)
    else:
        facts = json.loads(suite.asset("card.json").read_text(encoding="utf-8"))
    facts["settings"] = asdict(s)
    sampler = Sampler(suite.pipeline(), suite.tokens, s.num_steps)
    if start != "proxies":
        net = judge.train_classifier(s, data, work)
        facts["recognisability"] = quality.recognisability(s, data, net, sampler)
        print(json.dumps(facts["recognisability"], indent=1), flush=True)
        pool = judge.make_pool(s, data, Sampler(suite.pipeline(), suite.tokens, s.pool_steps), work)
        save_file(half(judge.train_judge(s, data, pool, sampler.pipe.vae, work)), out / "rewards/human.safetensors")
    human = Human.load(suite.resources)
    facts["judge"] = quality.judge_ordering(s, data, sampler, human, min(256, 8 * s.pool_size))
    print(json.dumps({k: round(v["score"], 3) for k, v in facts["judge"].items()}, indent=1), flush=True)
    train_proxies(s, data, sampler, human, suite, work, out)
    facts["proxies"] = quality.correlations(s, data, sampler, human, card.suite_rewards(suite))
    print(json.dumps(facts["proxies"], indent=1), flush=True)
    facts["minutes_of_this_call"] = round((time.monotonic() - started) / 60, 1)
    card.write(s, data, sampler, facts, out)


def make_models(s: Settings, data: EmojiSet, work: Path, out: Path) -> None:
    """Autoencoder, CLIP, U-Net and the prompt splits."""
    captions = [data.caption(k, styled) for k in range(len(data.images)) for styled in (False, True)]
    tokenizer = generator.make_tokenizer(captions, work / "tokenizer")
    vae = generator.train_vae(s, data, work)
    clip = generator.train_clip(s, data, tokenizer, work)
    tower = generator.text_tower(clip)
    unet = generator.train_unet(s, data, vae, tower, tokenizer, work)
    generator.save_pipeline(out / "pipeline", vae, tower, tokenizer, unet, work / "tokenizer")
    clip.half().save_pretrained(out / "clip")
    splits = split_prompts(data, s)
    tuning = splits.pop("tuning")
    world = {"splits": splits, "tuning": tuning, "names": list(data.names)}
    (out / "prompts.json").write_text(json.dumps(world, indent=1), encoding="utf-8")


def train_proxies(
    s: Settings, data: EmojiSet, sampler: Sampler, human: Human, suite: MiniSuite, work: Path, out: Path
) -> None:
    """Labels and fits."""

    def save(name: str, model: nn.Module) -> None:
        save_file(half(model), out / f"rewards/{name}.safetensors")

    save("aesthetic", proxies.train_aesthetic(s, data, sampler, human, suite.clip, work))
    base = proxies.base_samples(s, data, sampler, human, s.rated_images, generator_for(s.seed, "rated images"))
    mixed = proxies.mixed_samples(s, data, sampler, human, s.rated_images, generator_for(s.seed, "mixed images"))
    for name, scorer, rated, count in (
        ("imagereward", CrossAttentionScorer, base, s.imagereward_pairs),
        ("pickscore", SimilarityScorer, base, s.pickscore_pairs),
        ("hpsv2", SimilarityScorer, mixed, s.hpsv2_pairs),
    ):
        pairs = proxies.pair_up(s, rated, count, generator_for(s.seed, f"{name} pairs"))
        model = proxies.train_preference(s, name, scorer, suite.fresh_clip(), pairs, work)
        frozen = {f"clip.{k}": v for k, v in half(suite.clip).items()}
        fitted = {k: v for k, v in half(model).items() if k not in frozen or not torch.equal(v, frozen[k])}
        save_file(fitted, out / f"rewards/{name}.safetensors")


def main(
    out: Annotated[Path, typer.Option(help="where the suite is written")] = WEIGHTS,
    work: Annotated[Path, typer.Option(help="checkpoints of the stages; delete one to remake it")] = Path("mini_work"),
    cache: Annotated[Path, typer.Option(help="where the npm archives are kept")] = Path("mini_work/npm"),
    miniature: Annotated[bool, typer.Option(help="a few steps of everything, to test the recipe")] = False,
    start: Annotated[
        Stage, typer.Option(help="models, judge or proxies; earlier stages are taken from --out")
    ] = "models",
    restart: Annotated[bool, typer.Option(help="forget the checkpoints in --work")] = False,
) -> None:
    """Make every weight of the mini suite from published packages."""
    if restart and work.exists():
        shutil.rmtree(work)
    build(Settings.miniature() if miniature else Settings(), cache, work, out, start)


if __name__ == "__main__":
    typer.run(main)
