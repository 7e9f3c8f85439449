"""What trl 0.23's own DDPOTrainer and AlignPropTrainer do in one update, as numbers: tests/golden/trl.{npz,json}.

Run in the environment of ``environment_trl.sh DIR``, from the repository's root::

    PYTHONPATH=DIR HF_HUB_OFFLINE=1 python tests/official/dump_trl.py overopt_bench/suites/mini/weights/pipeline \
        tests/golden/trl

Everything that is compared is computed by trl: pipeline, LoRA, rollout, log-probabilities, loss, accumulation, gradient
clipping and optimizer. Only the noise source (``randn_tensor``) is replaced by stored draws, the adapter's random
weights by stored ones, and some methods are wrapped to record what goes through them. This package is not imported.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion as diffusers_sd
import numpy as np
import torch
import transformers
import trl.models.modeling_sd_base as trl_sd
from accelerate.state import AcceleratorState, GradientState, PartialState
from numpy.typing import NDArray
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from trl import AlignPropConfig, AlignPropTrainer, DDPOConfig, DDPOTrainer, DefaultDDPOStableDiffusionPipeline

Arrays = dict[str, NDArray[Any]]

STEPS = 5
PROMPTS = ["fox face", "butterfly", "tiger", "lobster"]
GROUP = ["tiger", "tiger", "tiger", "lobster"]  # of the whole step: the tigers reach min_count, the lobster does not
ADVANTAGES = [1.3, -0.7, 12.0, 0.4]  # the third is beyond trl's clip of 5
LORA_B = 0.03  # std of the adapter's up-projections; 0 would make the reference its own base model
DRIFT = 1.2e-4  # every sampling weight of the clipped case is this far from the trained one, up or down
GRAD_STEPS = (2, 5)  # AlignProp: last steps that keep their gradient
VERSIONS = ("trl", "diffusers", "transformers", "tokenizers", "accelerate", "peft", "torch", "numpy")

DDPO_SETTINGS: dict[str, Any] = {
    "mixed_precision": "no", "sample_num_steps": STEPS, "sample_eta": 1.0, "sample_guidance_scale": 5.0,
    "sample_batch_size": len(PROMPTS), "sample_num_batches_per_epoch": 1, "train_batch_size": len(PROMPTS),
    "train_learning_rate": 3e-4, "train_clip_range": 1e-4, "train_adv_clip_max": 5.0, "train_max_grad_norm": 1.0,
    "per_prompt_stat_tracking": True, "per_prompt_stat_tracking_buffer_size": 4,
    "per_prompt_stat_tracking_min_count": 2,
}  # fmt: skip
STEP_SETTINGS = DDPO_SETTINGS | {"train_adv_clip_max": 1.0}  # so that the whole step clips some of its advantages
ALIGNPROP_SETTINGS: dict[str, Any] = {
    "mixed_precision": "no", "sample_num_steps": STEPS, "sample_eta": 1.0, "sample_guidance_scale": 5.0,
    "train_batch_size": len(PROMPTS), "train_learning_rate": 1e-3, "train_max_grad_norm": 1.0,
    "truncated_backprop_rand": False,
}  # fmt: skip


def red_minus_blue(images: Tensor, prompts: Sequence[str], metadata: Sequence[Any]) -> tuple[Tensor, dict[str, Any]]:
    """The stand-in reward ``[B]`` of images ``[B, 3, H, W]`` in [0, 1], in the signature of trl."""
    return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2)), {}


@contextmanager
def drawn(noise: NDArray[np.float32]) -> Iterator[None]:
    """Inside: the initial latent and then each step's noise are ``noise`` ``[T+1, B, C, h, w]``, and no more."""
    draws = iter(torch.from_numpy(noise))

    def next_draw(shape: Sequence[int], **_: Any) -> Tensor:
        draw = next(draws).clone()
        assert tuple(draw.shape) == tuple(shape), (draw.shape, shape)
        return draw

    kept = trl_sd.randn_tensor, diffusers_sd.randn_tensor
    trl_sd.randn_tensor = diffusers_sd.randn_tensor = next_draw
    try:
        yield
        assert next(draws, None) is None, "noise was left over"
    finally:
        trl_sd.randn_tensor, diffusers_sd.randn_tensor = kept


def record(owner: Any, name: str, keep: Callable[[Any], Any]) -> list[Any]:
    """Wrap a method; what ``keep`` makes of each of its results is appended to the list returned."""
    method, kept = getattr(owner, name), []

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        kept.append(keep(result))
        return result

    setattr(owner, name, wrapper)
    return kept


def load_text_encoder(text_encoder: torch.nn.Module, pipeline: Path) -> None:
    """The text encoder's weights, which transformers 5 saved without the prefix that transformers 4 looks for.

    transformers 4 only warns about it and keeps a randomly initialised encoder.
    """
    prefix = "text_model."
    state = load_file(pipeline / "text_encoder" / "model.safetensors")
    text_encoder.load_state_dict({k if k.startswith(prefix) else prefix + k: v for k, v in state.items()})


class Run:
    """One trainer of trl from fresh weights, and what its one update did."""

    def __init__(
        self, trainer: type[Any], config: Any, pipeline: Path, lora: Arrays | None, prompts: Sequence[str]
    ) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState()  # trl's log messages need it
        sd_pipeline = DefaultDDPOStableDiffusionPipeline(str(pipeline))
        load_text_encoder(sd_pipeline.text_encoder, pipeline)
        draws = iter([(p, {}) for p in prompts])
        self.trainer = trainer(config, red_minus_blue, lambda: next(draws), sd_pipeline)
        self.unet = sd_pipeline.unet
        if lora is not None:
            self.load(lora)
        self.norms = record(self.trainer.accelerator, "clip_grad_norm_", float)
        self.gradients: list[Arrays] = []
        self.trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self.named("grad")))

    def named(self, what: str) -> Arrays:
        """Every adapter weight, or its gradient, under the name that ``get_peft_model_state_dict`` gives it."""
        parameters = {
            name.replace(".default.", "."): p if what == "weight" else p.grad
            for name, p in self.unet.named_parameters()
            if p.requires_grad
        }
        names = list(get_peft_model_state_dict(self.unet))
        assert set(names) == set(parameters), "peft names its state otherwise"
        return {name: parameters[name].detach().numpy().copy() for name in names}

    def load(self, lora: Arrays) -> None:
        """Set the adapter's weights."""
        result = set_peft_model_state_dict(self.unet, {k: torch.from_numpy(v) for k, v in lora.items()})
        assert not result.unexpected_keys
        assert all(np.array_equal(v, lora[k]) for k, v in self.named("weight").items())

    def finish(self) -> Arrays:
        """Gradient (clipped, as the optimizer saw it), its norm before, and the weights after the only update."""
        assert len(self.norms) == len(self.gradients) == 1, "not one update"
        return {
            "grad_norm": np.float32(self.norms[0]),
            "gradient": flat(self.gradients[0]),
            "updated": flat(self.named("weight")),
        }


def flat(arrays: Arrays) -> NDArray[Any]:
    """All values in a row, in the order of the dictionary."""
    return np.concatenate([a.ravel() for a in arrays.values()])


def ddpo(pipeline: Path, noise: NDArray[np.float32], sampled: Arrays, trained: Arrays) -> Arrays:
    """One DDPO update of the weights ``trained`` on chains that ``sampled`` drew, with given advantages."""
    run = Run(DDPOTrainer, DDPOConfig(**DDPO_SETTINGS), pipeline, sampled, PROMPTS)
    trainer = run.trainer
    with torch.no_grad(), drawn(noise):
        (sample,), ((images, *_),) = trainer._generate_samples(1, len(PROMPTS))
    run.load(trained)
    out: Arrays = {
        "latents": np.concatenate([sample["latents"][:, :1], sample["next_latents"]], 1),
        "timesteps": sample["timesteps"][0].numpy(),
        "log_probs_old": sample["log_probs"].numpy(),
        "prompt_embeds": sample["prompt_embeds"].numpy(),
        "negative_prompt_embeds": sample["negative_prompt_embeds"].numpy(),
        "images": images.numpy(),
    }
    del sample["prompt_ids"]
    sample["advantages"] = torch.tensor(ADVANTAGES)
    steps = record(trainer, "calculate_loss", lambda result: [v.item() for v in result])
    log_probs = record(trainer.sd_pipeline, "scheduler_step", lambda result: result.log_probs.detach().numpy())
    trainer._train_batched_samples(0, 0, 0, [sample])
    out["log_probs"] = np.stack(log_probs, 1)
    distance = np.abs(np.abs(np.expm1(out["log_probs"] - out["log_probs_old"])) - trainer.config.train_clip_range)
    assert distance.min() > 3e-6, "a ratio is so near the clip range that rounding decides; choose another drift"
    out["loss"], out["approx_kl"], out["clipfrac"] = np.array(steps, np.float32).T  # of each step, means over samples
    return out | run.finish()


def ddpo_step(pipeline: Path, noise: NDArray[np.float32], lora: Arrays) -> Arrays:
    """``DDPOTrainer.step`` as a whole: rewards, per-prompt statistics, shuffles and the update."""
    run = Run(DDPOTrainer, DDPOConfig(**STEP_SETTINGS), pipeline, lora, GROUP)
    steps = record(run.trainer, "calculate_loss", lambda result: result[0].item())
    advantages = record(run.trainer.stat_tracker, "update", np.array)
    rewards = record(run.trainer, "reward_fn", lambda result: result[0].numpy())
    with torch.no_grad(), drawn(noise):  # only its training part needs a graph
        trained = run.trainer._train_batched_samples

        def with_graph(*args: Any) -> Any:
            with torch.enable_grad():
                return trained(*args)

        run.trainer._train_batched_samples = with_graph
        run.trainer.step(0, 0)
    return {
        "rewards": rewards[0], "advantages": advantages[0].astype(np.float32), "loss": np.float32(np.mean(steps)),
        **run.finish(),
    }  # fmt: skip


def alignprop(pipeline: Path, noise: NDArray[np.float32], lora: Arrays, grad_steps: int) -> Arrays:
    """``AlignPropTrainer.step`` as a whole, with the gradient of the last ``grad_steps`` denoising steps."""
    config = AlignPropConfig(**ALIGNPROP_SETTINGS, truncated_backprop_timestep=STEPS - grad_steps)
    run = Run(AlignPropTrainer, config, pipeline, lora, PROMPTS)
    losses = record(run.trainer, "calculate_loss", lambda result: np.float32(result.item()))
    seen = record(run.trainer, "_generate_samples", lambda pairs: pairs["images"].detach().numpy())
    rewards = record(run.trainer, "compute_rewards", lambda reward: reward.detach().numpy())
    with drawn(noise):
        run.trainer.step(0, 0)
    return {"loss": losses[0], "rewards": rewards[0], "images": seen[0], **run.finish()}


def make_lora(pipeline: Path, rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Adapter weights with an effect (A as peft's "gaussian", B not zero), and a direction of -1 and 1 for each."""
    shapes = Run(DDPOTrainer, DDPOConfig(**DDPO_SETTINGS), pipeline, None, PROMPTS).named("weight")
    lora = {
        name: rng.normal(0, 0.25 if "lora_A" in name else LORA_B, a.shape).astype(np.float32)
        for name, a in shapes.items()
    }
    return lora, {name: rng.choice(np.array([-1, 1], np.int8), a.shape) for name, a in lora.items()}


def main() -> None:
    """Write OUTPUT.npz and OUTPUT.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path, help="folder of a small StableDiffusionPipeline")
    parser.add_argument("output", type=Path, help="without suffix")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()  # it warns of the text encoder, see load_text_encoder
    torch.set_num_threads(1)

    rng = np.random.default_rng(0)
    lora, direction = make_lora(arguments.pipeline, rng)
    drifted = {name: a + np.float32(DRIFT) * direction[name] for name, a in lora.items()}
    unet = json.loads((arguments.pipeline / "unet" / "config.json").read_text())
    size = unet["sample_size"]
    noise = rng.standard_normal((STEPS + 1, len(PROMPTS), unet["in_channels"], size, size)).astype(np.float32)
    cases = {
        "ddpo_on_policy": ddpo(arguments.pipeline, noise, lora, lora),
        "ddpo_clipped": ddpo(arguments.pipeline, noise, drifted, lora),
        "ddpo_step": ddpo_step(arguments.pipeline, noise, lora),
        **{f"alignprop_{k}": alignprop(arguments.pipeline, noise, lora, k) for k in GRAD_STEPS},
    }
    arrays: Arrays = {"noise": noise, "advantages": np.array(ADVANTAGES, np.float32), "direction": flat(direction)}
    arrays |= {f"lora/{name}": a for name, a in lora.items()}
    arrays |= {f"{case}/{name}": a for case, values in cases.items() for name, a in values.items()}
    for name in ("prompt_embeds", "negative_prompt_embeds", "timesteps", "images"):  # once is enough
        del arrays[f"ddpo_clipped/{name}"]
    np.savez_compressed(arguments.output.with_suffix(".npz"), **arrays)

    defaults = {"train_adam_beta1": 0.9, "train_adam_beta2": 0.999, "train_adam_weight_decay": 1e-4}
    for config in (DDPOConfig(**DDPO_SETTINGS), AlignPropConfig(**ALIGNPROP_SETTINGS)):
        assert all(getattr(config, k) == v for k, v in (defaults | {"train_adam_epsilon": 1e-8}).items())
    provenance = {
        "source": "trl 0.23.0: DDPOTrainer, AlignPropTrainer, DefaultDDPOStableDiffusionPipeline, unmodified",
        "command": "PYTHONPATH=DIR HF_HUB_OFFLINE=1 python tests/official/dump_trl.py"
        " overopt_bench/suites/mini/weights/pipeline tests/golden/trl",
        "environment": "tests/official/environment_trl.sh DIR",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "machine": f"{platform.machine()}, CPU, one thread, float32",
        "weights_sha256": {
            str(path.relative_to(arguments.pipeline)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(arguments.pipeline.glob("*/*.safetensors"))
        },
        "prompts": PROMPTS,
        "ddpo_step_prompts": GROUP,
        "lora": {"r": 4, "lora_alpha": 4, "std_of_B": LORA_B, "drift": DRIFT},
        "adam": defaults | {"train_adam_epsilon": 1e-8},
        "ddpo": DDPO_SETTINGS,
        "ddpo_step": STEP_SETTINGS,
        "alignprop": ALIGNPROP_SETTINGS | {"cases": {str(k): STEPS - k for k in GRAD_STEPS}},
        "reward": "mean of red minus mean of blue, image in [0, 1]",
    }
    arguments.output.with_suffix(".json").write_text(json.dumps(provenance, indent=2) + "\n")
    for case, values in cases.items():
        scalars = {k: np.round(v, 6).tolist() for k, v in values.items() if v.size <= 5}
        print(case, scalars)
        if "log_probs" in values:
            print("  log ratios", (values["log_probs"] - values["log_probs_old"]).round(6).tolist())


if __name__ == "__main__":
    main()
