"""Checkpoints as they exist in the world: what their configurations ask for is done, or refused before anything is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tiny_checkpoints import edited, unet

from overopt_bench import cli
from overopt_bench.config import resolve
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite

SD, XL = "stable-diffusion-v1-4", "stable-diffusion-xl-base-1.0"
INDEX, SCHEDULER, UNET, VAE = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "vae/config.json",
)
RUN = [
    "run", "--algo", "ddpo", "--proxy", "jpeg_compressibility", "--budget", "4", "--eval-points", "2", "--eval-images", "4",
    "--device", "cpu", "--set", "samples_per_epoch=4",
]  # fmt: skip
PROMPTS = ["cat", "a dog on a hill"]
SCHEDULE = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}


def run(model: Path, weights: Path, out: Path, *options: str, steps: int = 3) -> int:
    words = ["--model", str(model), "--weights", str(weights), "--out", str(out), "--num-steps", str(steps)]
    return cli.main([*RUN, *words, *options])


def scheduler(name: str) -> dict[str, Any]:
    return {"scheduler": ["diffusers", f"{name}Scheduler"]}


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    (XL, INDEX, scheduler("EDMDPMSolverMultistep"), "scheduler EDMDPMSolverMultistepScheduler is not of a network that takes timesteps"),
    (XL, INDEX, scheduler("EDMEuler"), "scheduler EDMEulerScheduler is not of a network"),
    (SD, INDEX, scheduler("FlowMatchEulerDiscrete"), "scheduler FlowMatchEulerDiscreteScheduler"),
    (SD, INDEX, scheduler("LCM"), "scheduler LCMScheduler"),
    (SD, INDEX, scheduler("TCD"), "scheduler TCDScheduler"),
    (SD, INDEX, {"scheduler": [None, None]}, "StableDiffusionPipeline without scheduler"),
    (SD, SCHEDULER, {"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'; allowed are epsilon, sample, v_"),
    (SD, SCHEDULER, {"use_flow_sigmas": True}, "flow matching is not supported"),
    (SD, SCHEDULER, {"timestep_type": "continuous"}, "timestep_type 'continuous'"),
    (SD, SCHEDULER, {"thresholding": True}, "has thresholding, which is not meant for latents"),
    (SD, SCHEDULER, {"beta_schedule": "laplace"}, "does not load as a StableDiffusionPipeline: laplace is not implemented"),
    (SD, SCHEDULER, SCHEDULE | {"prediction_type": "epsilon"}, "predicts epsilon, from which no image follows"),
    (SD, UNET, {"time_cond_proj_dim": 16}, "(time_cond_proj_dim): distilled models are not supported"),
    (SD, UNET, {"class_embed_type": "timestep"}, "class_embed_type 'timestep': conditions other than the prompt"),
    (SD, UNET, {"num_class_embeds": 7}, "num_class_embeds 7: conditions other than the prompt"),
    (SD, UNET, {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 32}, "encoder_hid_dim_type 'text_proj'"),
    (SD, UNET, {"addition_embed_type": "text"}, "addition_embed_type 'text', where a pipeline of its kind has None"),
    (XL, UNET, {"addition_embed_type": "image"}, "addition_embed_type 'image', where a pipeline of its kind has 'text_time'"),
    (XL, UNET, {"projection_class_embeddings_input_dim": 16 + 5 * 8}, "XL's refiner (requires_aesthetics_score)"),
    (SD, UNET, {"out_channels": 8}, "takes 4 channels and gives 8: a learned variance"),
    (SD, UNET, {"in_channels": 9}, "inpainting is not supported"),
    (SD, UNET, {"sample_size": None}, "sample_size is None; it must be one number"),
    (SD, UNET, {"sample_size": [8, 16]}, "sample_size is [8, 16]; it must be one number"),
    (SD, UNET, {"cross_attention_dim": 64}, "embeddings of width 64 and the text encoders give 32"),
    (XL, INDEX, {"text_encoder": [None, None]}, "StableDiffusionXLPipeline without text_encoder"),
    (XL, INDEX, {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "holds a StableDiffusionXLImg2ImgPipeline"),
    (SD, INDEX, {"unet": ["diffusers", "UNetMotionModel"]}, "U-Net is of class UNetMotionModel"),
    (SD, INDEX, {"vae": ["diffusers", "AutoencoderTiny"]}, "VAE is of class AutoencoderTiny"),
    (SD, VAE, {"latent_channels": 16}, "takes 4 channels and the VAE gives 16"),
    (XL, VAE, {"shift_factor": 0.1}, "shift_factor 0.1, which the pipelines of Stable Diffusion do not know"),
    (SD, VAE, {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "which only a StableDiffusionXLPipeline knows"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "file", "change", "message"), REFUSED, ids=[case[3][:40] for case in REFUSED])
def test_what_is_not_supported_is_refused_in_one_line_before_anything_is_written(
    name: str, file: str, change: dict[str, Any], message: str, tiny_weights: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    model = edited(tiny_weights / name, tmp_path / "model", {file: change})
    assert run(model, tiny_weights, tmp_path / "out") == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and [line for line in lines if line.startswith("error:")] == lines[-1:]
    assert not (tmp_path / "out").exists()


def test_the_other_commands_refuse_what_a_run_would(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also a model that was changed after the run."""
    model = edited(tiny_weights / SD, tmp_path / "model", {UNET: {"time_cond_proj_dim": 16}})
    (tmp_path / "seed0/adapter").mkdir(parents=True)
    (tmp_path / "seed0/adapter/pytorch_lora_weights.safetensors").touch()
    given = {"algo": "ddpo", "proxy": "jpeg_compressibility", "suite": "sd", "model": str(model)}
    (tmp_path / "seed0/config.json").write_text(json.dumps({"config": resolve(given).model_dump(mode="json")}))
    for words in (
        ["doctor", "--model", str(model)],
        ["bench", "--model", str(model)],
        ["sample", str(tmp_path / "seed0"), "--prompt", "cat", "--out", str(tmp_path / "out")],
        ["eval", str(tmp_path / "seed0"), "--prompt", "cat"],
    ):
        assert cli.main([*words, "--device", "cpu", "--weights", str(tiny_weights)]) == 2, words
        assert "distilled models are not supported" in capsys.readouterr().err.splitlines()[-1], words
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused_before_anything_is_written(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = edited(tiny_weights / SD, tmp_path / "model", {})
    path = model / "unet/diffusion_pytorch_model.safetensors"
    state = load_file(path)
    path.unlink()
    save_file(state | {"conv_in.bias": state["conv_in.bias"] * float("nan")}, path, metadata={"format": "pt"})
    assert run(model, tiny_weights, tmp_path / "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "error: the base model draws an image that is not finite, its weights are damaged"
    assert not (tmp_path / "out").exists()


def test_parts_that_do_not_fit_are_refused_before_anything_is_written(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A U-Net whose blocks attend to embeddings of several widths, of which the text encoder gives one."""
    model = edited(tiny_weights / SD, tmp_path / "model", {})
    shutil.rmtree(model / "unet")
    unet(cross_attention_dim=(32, 48)).save_pretrained(model / "unet")
    assert run(model, tiny_weights, tmp_path / "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the base model does not run, its parts do not fit each other: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "change", "steps", "timesteps"),
    [
        (XL, {SCHEDULER: {"steps_offset": 0}}, 4, [750, 500, 250, 1]),
        (SD, {SCHEDULER: {"steps_offset": None}}, 4, [751, 501, 251, 1]),  # the pipeline of diffusers says 1
        (SD, {SCHEDULER: {"timestep_spacing": "linspace"}}, 4, [999, 666, 333, 1]),
        (SD, {SCHEDULER: {"timestep_spacing": "trailing"}}, 3, [999, 666, 332]),
        (SD, {SCHEDULER: {"prediction_type": "sample"}}, 4, [751, 501, 251, 1]),
        (SD, {SCHEDULER: {**SCHEDULE, "prediction_type": "v_prediction"}, INDEX: scheduler("DDIM")}, 2, [999, 499]),
        (XL, {SCHEDULER: {**SCHEDULE, "prediction_type": "v_prediction"}}, 2, [999, 499]),
    ],
)  # fmt: skip
def test_odd_schedules_train(
    name: str, change: dict[str, Any], steps: int, timesteps: list[int], tiny_weights: Path, tmp_path: Path
) -> None:
    """To the end, with a finite KL and ratios of 1 at the first update: sampling and training agree on every step."""
    model = edited(tiny_weights / name, tmp_path / "model", change)
    assert policy(model, num_steps=steps).timesteps.tolist() == timesteps
    assert run(model, tiny_weights, tmp_path / "out", steps=steps) == 0
    (folder,) = (tmp_path / "out").glob("sd-*/*/ddpo/seed0")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    train, last = rows[[row["event"] for row in rows].index("train")], rows[-1]
    assert train["clipfrac/first"] == 0 and last["train/path_kl/mean"] > 0


@pytest.mark.parametrize("given", [[], ["--algo", "base"]], ids=["ddpo", "base"])
def test_too_many_steps_are_refused_before_anything_is_written(
    given: list[str], tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN[:-2], *given, "--suite", "sd14", "--weights", str(tiny_weights), "--num-steps", "1000"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "--num-steps 1000 does not fit the checkpoint's 1000 timesteps (leading" in line and line.endswith("is 999")
    assert not (tmp_path / "out").exists()


def policy(model: Path, **options: Any) -> DiffusionPolicy:
    settings = {
        "num_steps": 3,
        "guidance_scale": 3.0,
        "eta": 1.0,
        "lora_rank": 2,
        "lora_alpha": 2,
        "seed": 0,
        **options,
    }
    return DiffusionPolicy(get_suite("sd", None, str(model)).pipeline(), **settings)


@pytest.mark.parametrize("change", [
    {"latents_mean": [0.5, -1.0, 2.0, 0.1], "latents_std": [2.0, 0.5, 3.0, 1.5]}, {"latents_mean": [0.5] * 4}, {}
], ids=["both", "mean alone is ignored", "neither"])  # fmt: skip
def test_latents_are_decoded_as_the_pipeline_does(change: dict[str, Any], tiny_weights: Path, tmp_path: Path) -> None:
    """Against the whole pipeline of diffusers, whose last lines are its own way from latents to an image."""
    model = edited(tiny_weights / XL, tmp_path / "model", {VAE: change})
    pipeline = get_suite("sd", None, str(model)).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []

    def keep(_: Any, step: int, __: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        latents.append(kwargs["latents"].clone())
        return kwargs

    options = {"height": 32, "width": 32, "output_type": "pt", "generator": torch.Generator().manual_seed(0)}
    theirs = pipeline(PROMPTS, num_inference_steps=2, callback_on_step_end=keep, **options).images
    ours = policy(model).decode(latents[-1])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if len(change) == 2:  # and by hand
        vae = AutoencoderKL.from_pretrained(model / "vae")
        mean, std = (torch.tensor(change[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
        by_hand = vae.decode(latents[-1] * std / vae.config.scaling_factor + mean).sample / 2 + 0.5
        torch.testing.assert_close(ours, by_hand.clamp(0, 1), rtol=1e-4, atol=1e-4)
        plain = vae.decode(latents[-1] / vae.config.scaling_factor).sample / 2 + 0.5
        assert (ours - plain.clamp(0, 1)).abs().mean() > 0.01
