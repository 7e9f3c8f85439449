"""The shipped mini suite: what it promises in its card is what its weights do."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from overopt_bench.registry import get_reward, get_suite
from overopt_bench.suites.mini import WEIGHTS

LEARNED = ("aesthetic", "imagereward", "pickscore", "hpsv2")


def card() -> dict:
    return dict(json.loads((WEIGHTS / "card.json").read_text()))


def test_pipeline_loads_in_plain_diffusers_and_draws() -> None:
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    assert isinstance(pipe.scheduler, DDIMScheduler) and not pipe.scheduler.config.clip_sample
    pipe.set_progress_bar_config(disable=True)
    image = pipe("penguin", num_inference_steps=4, height=32, width=32, output_type="pt").images
    assert image.shape == (1, 3, 32, 32) and bool(image.isfinite().all()) and image.std() > 0.05


def test_shipped_weights_are_small_half_precision_safetensors() -> None:
    files = [f for f in WEIGHTS.rglob("*") if f.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    assert not files
    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) <= 25e6


def test_prompt_splits_do_not_overlap() -> None:
    prompts = get_suite("mini").prompts
    tuning = json.loads((WEIGHTS / "prompts.json").read_text())["tuning"]
    assert next(iter(prompts)) == "train" and len(prompts["train"]) >= 16
    apart = [set(prompts["train"]), set(prompts["heldout"]), set(prompts["heldout_objects"]), set(tuning)]
    assert sum(map(len, apart)) == len(set().union(*apart))
    assert all(p.split(" ", 1)[1] in prompts["train"] for p in prompts["heldout_style"])


def test_judge_orders_images_as_people_would() -> None:
    score = {row: v["score"] for row, v in card()["judge"].items()}
    order = ["real", "reconstructed", "base samples", "base samples, guidance 5", "perturbed U-Net 0.5", "pure noise"]
    assert [score[row] for row in order] == sorted((score[row] for row in order), reverse=True)
    for kind in ("noise", "blur", "tint", "warp", "tiles", "waves"):
        assert score["real"] > score[f"real, mild {kind}"] > score[f"real, strong {kind}"]
    for bad in ("white", "texture", "pure noise", "collapse (one drawing for all)", "base samples, swapped prompts"):
        assert score[bad] < score["base samples"] - 0.2


def test_judge_itself_still_orders_real_base_and_spoilt_images() -> None:
    """The numbers in the card were not merely written: the shipped weights give the same order."""
    suite = get_suite("mini")
    human = get_reward("human", suite)
    pipe = suite.pipeline()
    pipe.set_progress_bar_config(disable=True)
    prompts = list(suite.prompts["train"])
    made = pipe(
        prompts, num_inference_steps=suite.defaults.num_steps, eta=1.0, guidance_scale=suite.defaults.guidance_scale, height=32, width=32,
        output_type="pt", generator=torch.Generator().manual_seed(0),
    ).images  # fmt: skip
    noise = torch.rand(made.shape, generator=torch.Generator().manual_seed(0))
    scores = [human(x, p).mean().item() for x, p in [
        (made, prompts), (0.5 * made + 0.5 * noise, prompts), (made, prompts[1:] + prompts[:1]), (noise, prompts)
    ]]  # fmt: skip
    assert scores[0] > scores[1] > scores[3] and scores[0] > scores[2] > scores[3]


@pytest.mark.parametrize("name", LEARNED)
def test_learned_proxies_are_good_but_not_too_good(name: str) -> None:
    entry = card()["proxies"][name]
    assert 0.4 <= entry["spearman"] <= 0.9 and entry["n"] >= 500


def test_base_samples_are_recognisable() -> None:
    seen = card()["recognisability"]
    scale = f"{get_suite('mini').defaults.guidance_scale:g}"
    assert seen[f"base samples, guidance {scale}"]["top1"] >= 0.87  # the feasibility study's figure
    assert seen["real"]["top1"] >= 0.95
