"""Rounds of trl's DDPOTrainer and AlignPropTrainer, unmodified: theirs.py CASE BATCH THREADS, in trl's environment."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import transformers
from accelerate.state import PartialState
from cases import ETA, PROMPTS, STEPS, Case, red_minus_blue, serve, set_up
from dump_trl import load_text_encoder
from torch import Tensor
from trl import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

PIPELINE = Path(__file__).parents[1] / "overopt_bench/suites/mini/weights/pipeline"


def reward(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[Tensor, dict[str, Any]]:
    """Give the reward in the signature of trl."""
    return red_minus_blue(images), {}


def trainer(case: Case, batch: int) -> Any:
    """Make the trainer of a case; both write nothing but every ``save_freq`` epochs, which are never reached."""
    common: dict[str, Any] = {
        "mixed_precision": "no", "sample_num_steps": STEPS, "sample_eta": ETA, "sample_guidance_scale": case.guidance,
        "train_batch_size": batch, "train_gradient_accumulation_steps": 1, "train_max_grad_norm": 1.0,
        "project_kwargs": {"project_dir": tempfile.mkdtemp()},
    }  # fmt: skip
    pipeline = DefaultDDPOStableDiffusionPipeline(str(PIPELINE))
    load_text_encoder(pipeline.sd_pipeline.text_encoder, PIPELINE)
    prompts = ((prompt, {}) for prompt in itertools.cycle(PROMPTS))
    if case.grad_steps:
        # fixed, for a random cut is drawn anew at every denoising step and skips steps rather than cutting the chain
        truncation = {"truncated_backprop_rand": False, "truncated_backprop_timestep": STEPS - case.grad_steps}
        return AlignPropTrainer(AlignPropConfig(**common, **truncation), reward, lambda: next(prompts), pipeline)
    if case.guidance == 1:
        # diffusers of this age puts the negative prompts before the prompts even where no guidance is asked, and trl then
        # hands twice as many prompts to the network as latents
        pipeline.sd_pipeline._encode_prompt = lambda *_, prompt_embeds, **__: prompt_embeds
    own = {"sample_batch_size": batch, "sample_num_batches_per_epoch": 1, "train_cfg": case.guidance != 1}
    return DDPOTrainer(DDPOConfig(**common, **own), reward, lambda: next(prompts), pipeline)


def main() -> None:
    """Serve rounds of trl."""
    case, batch = set_up()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # it warns of the text encoder, see load_text_encoder
    PartialState()  # trl's log messages need it
    diffusers.utils.logging.disable_progress_bar()
    theirs = trainer(case, batch)
    theirs.sd_pipeline.set_progress_bar_config(disable=True)  # which would cost it time
    serve({"trl": lambda: theirs.step(0, 0)})


if __name__ == "__main__":
    main()
