"""Images from a trained policy, drawn by plain diffusers with the adapter that the run saved."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from overopt_bench.config import RunConfig
from overopt_bench.errors import UserError
from overopt_bench.policy import PRECISIONS
from overopt_bench.registry import get_suite
from overopt_bench.runtime import Runtime
from overopt_bench.seeding import stable_seed


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        UserError: where the folder is no run.
    """
    try:
        content = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return RunConfig(**content["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} is not a run folder: its config.json cannot be read ({type(error).__name__})") from None


def trained_pipeline(run: Path, config: RunConfig, runtime: Runtime) -> Any:
    """The suite's pipeline with the run's LoRA, in the precision of the run.

    Raises:
        UserError: where the suite's weights are missing or the run saved no adapter yet.
    """
    if not any((run / "adapter").glob("*.safetensors")):
        raise UserError(
            f"{run} has no adapter: methods without training have none, an interrupted run may have none yet"
        )
    suite = get_suite(config.suite, runtime.weights, config.model)
    pipeline = suite.pipeline().to(runtime.device, PRECISIONS[config.precision])
    pipeline.load_lora_weights(run / "adapter")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def sample_images(pipeline: Any, config: RunConfig, prompts: Sequence[str], count: int, seed: int) -> Tensor:
    """``count`` images of each prompt, ``[prompts * count, 3, H, W]`` in [0, 1], with the sampler of the run.

    The noise depends only on (seed, prompt, index), so two pipelines draw the same images but for their weights.

    Raises:
        UserError: where there is no prompt, an empty one, or count is not positive.
    """
    if count < 1 or not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("give at least one --prompt that is not empty and a --count of at least 1")
    parts = []
    for prompt in prompts:
        generators = [torch.Generator().manual_seed(stable_seed("sample", seed, prompt, k)) for k in range(count)]
        parts.append(pipeline(
            prompt, num_images_per_prompt=count, num_inference_steps=config.num_steps, output_type="pt",
            guidance_scale=config.guidance_scale, eta=config.eta, generator=generators,
        ).images)  # fmt: skip
    return torch.cat(parts)


def draw(run: Path, prompts: Sequence[str], count: int, seed: int, out: Path, runtime: Runtime) -> list[Path]:
    """``count`` PNG files for each prompt; see ``sample_images``.

    Raises:
        UserError: where the run cannot be sampled.
    """
    config = read_config(run)
    images = sample_images(trained_pipeline(run, config, runtime), config, prompts, count, seed)
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for k, pixels in enumerate((images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()):
        word = re.sub(r"[^a-z0-9]+", "-", prompts[k // count].lower()).strip("-")[:60]
        files.append(out / f"{word}-{seed}-{k % count}.png")
        Image.fromarray(pixels).save(files[-1])
    return files
