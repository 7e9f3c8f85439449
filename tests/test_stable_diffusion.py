"""The suites of Stable Diffusion on small random checkpoints in the real formats: the literal commands, end to end."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForText2Image, DDIMScheduler

from overopt_bench import cli
from overopt_bench.compute.runtime import Runtime
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.errors import UserError
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.registry import get_suite

SMALL = ["--num-steps", "3", "--budget", "8", "--eval-points", "2", "--eval-images", "4", "--device", "cpu"]
RUN = ["run", "--algo", "ddpo", "--proxy", "aesthetic"]
EPOCH = ["--set", "samples_per_epoch=4"]
PROMPTS = ["cat", "a dog on a hill"]


def make(folder: Path, name: str = "sd14", model: str | None = None, **options: Any) -> DiffusionPolicy:
    settings = {
        "num_steps": 4,
        "guidance_scale": 3.0,
        "eta": 1.0,
        "lora_rank": 4,
        "lora_alpha": 4,
        "seed": 0,
        **options,
    }
    policy = DiffusionPolicy(get_suite(name, folder, model).pipeline(), **settings)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable():
            p += 0.1 * torch.randn(p.shape, generator=g)
    return policy


def noise(policy: DiffusionPolicy, n: int = 2) -> torch.Tensor:
    return policy.draw_noise(n, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("algo", "options"),
    [("ddpo", EPOCH), ("tdpo", EPOCH), ("tdpo_r", [*EPOCH, "--set", "reset_period=1"]), ("alignprop", ["--set", "batch_size=4"])],
)  # fmt: skip
def test_the_papers_command_runs_and_reports(
    algo: str, options: list[str], tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--algo", algo, "--proxy", "aesthetic", "--gold", "imagereward", "--suite", "sd14"]
    assert cli.main([*words, "--weights", str(tiny_weights), *SMALL, *options, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "sd14/aesthetic" / algo / "seed0"
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["event"] == "eval"][-1]
    assert last["queries"] == 8 and last["train/path_kl/mean"] > 0
    assert {"train/aesthetic/mean", "heldout/imagereward/mean", "heldout/diversity"} <= last.keys()
    (provenance,) = read_sessions(folder)
    assert set(provenance["weights"]) == {f"{part}.safetensors" for part in (
        "text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
    )}  # fmt: skip
    assert provenance["critic_encoder"] == "proxy" and all(provenance["rewards"].values())
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert "sd14" in (tmp_path / "report/index.html").read_text()
    capsys.readouterr()
    assert cli.main(["eval", str(folder), "--weights", str(tiny_weights), "--count", "1", "--device", "cpu"]) == 0
    assert "imagereward gold" in " ".join(capsys.readouterr().out.split())
    assert cli.main([
        "sample", str(folder), "--prompt", "cat", "--count", "1", "--weights", str(tiny_weights), "--device", "cpu",
        "--out", str(tmp_path / "samples"),
    ]) == 0  # fmt: skip
    assert len(list((tmp_path / "samples").glob("*.png"))) == 1


@pytest.mark.parametrize("suite", ["sd15", "sdxl"])
def test_the_other_suites_run(suite: str, tiny_weights: Path, tmp_path: Path) -> None:
    words = [
        "run",
        "--algo",
        "ddpo",
        "--proxy",
        "hpsv2",
        "--gold",
        "pickscore",
        "--suite",
        suite,
        "--weights",
        str(tiny_weights),
    ]
    assert cli.main([*words, *SMALL, *EPOCH, "--out", str(tmp_path)]) == 0
    config = json.loads((tmp_path / suite / "hpsv2/ddpo/seed0/config.json").read_text())["config"]
    assert config["gold"] == ["pickscore", "imagereward"] and config["precision"] == "float32"


def test_any_pipeline_by_its_folder(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_weights / "stable-diffusion-2-1"
    words = ["run", "--algo", "alignprop", "--set", "batch_size=4", "--proxy", "clipscore", "--model", str(model)]
    assert cli.main([*words, "--weights", str(tiny_weights), *SMALL, "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("suite sd: --model was given")
    (folder,) = tmp_path.glob("sd-*/clipscore/alignprop/seed0")
    assert json.loads((folder / "config.json").read_text())["config"]["model"] == str(model)


@pytest.mark.parametrize(
    ("suite", "model"),
    [("sd14", None), ("sd", "stable-diffusion-2-1"), ("sdxl", None)],
    ids=["epsilon", "velocity", "xl"],
)
def test_a_trained_adapter_draws_the_same_image_in_plain_diffusers(
    suite: str, model: str | None, tiny_weights: Path, tmp_path: Path
) -> None:
    """Everything but our policy is diffusers': its loader, prompt encoding, guidance and DDIM step."""
    policy = make(tiny_weights, suite, model and str(tiny_weights / model))
    z = noise(policy)
    ours = policy.sample(z, PROMPTS)[0].images
    with policy.base():
        assert (policy.sample(z, PROMPTS)[0].images - ours).abs().max() > 0.01
    policy.save_adapter(tmp_path)
    names = {"sd14": "stable-diffusion-v1-4", "sd": model or "", "sdxl": "stable-diffusion-xl-base-1.0"}
    plain = {} if suite == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    pipe = AutoPipelineForText2Image.from_pretrained(tiny_weights / names[suite], **plain)
    pipe.load_lora_weights(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False)
    draws, step = iter(z[1:]), pipe.scheduler.step
    pipe.scheduler.step = lambda eps, t, x, **_: step(eps, t, x, eta=1.0, variance_noise=next(draws), return_dict=False)
    theirs = pipe(
        PROMPTS, num_inference_steps=4, guidance_scale=3.0, latents=z[0].clone(), height=32, width=32, output_type="pt"
    )
    # the last step differs where diffusers goes to t < 0: it takes the final alpha, we alphas_cumprod[0]; equal here
    torch.testing.assert_close(theirs.images, ours, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("suite", ["sd14", "sdxl"])
def test_half_precision_keeps_float32_where_it_counts(suite: str, tiny_weights: Path) -> None:
    full, half = make(tiny_weights, suite), make(tiny_weights, suite, precision="bfloat16")
    assert {p.dtype for p in half.trainable()} == {torch.float32}
    assert half.unet.conv_in.weight.dtype == torch.bfloat16 and half.vae.dtype == torch.bfloat16
    a, b = full.sample(noise(full), PROMPTS)[0], half.sample(noise(half), PROMPTS)[0]
    assert b.latents.dtype == b.log_probs.dtype == b.images.dtype == torch.float32
    assert (b.latents - a.latents).norm() < 0.05 * a.latents.norm()
    assert not torch.equal(a.latents, b.latents)
    rows = torch.arange(2)
    step = half.transition(b.latents[:, 1], torch.ones_like(rows), PROMPTS)
    ratio = (step.log_prob(b.latents[:, 2]) - b.log_probs[:, 1]).exp()
    torch.testing.assert_close(ratio, torch.ones(2))  # same batch, same kernels: no update, no change
    step.log_prob(b.latents[:, 2]).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in half.trainable())


def gradient(policy: DiffusionPolicy, parts: list[list[int]], **options: Any) -> torch.Tensor:
    """Of a policy-gradient loss and of a differentiable rollout, in the given micro-batches."""
    z = noise(policy, 4)
    words = PROMPTS * 2
    chain = policy.sample(z, words)[0]
    for p in policy.trainable():
        p.grad = None
    for part in parts:
        rows, own = torch.tensor(part), [words[k] for k in part]
        step = policy.transition(chain.latents[rows, 1], torch.ones_like(rows), own, **options)
        (step.log_prob(chain.latents[rows, 2]).sum() / 4e3).backward()
        images = policy.rollout_from(z[:, rows], own, grad_from=2, **options).images
        ((images - 0.5) ** 2).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.trainable() if p.grad is not None])


@pytest.mark.parametrize("suite", ["sd14", "sdxl"])
def test_micro_batches_checkpointing_and_attention_change_no_gradient(suite: str, tiny_weights: Path) -> None:
    """To 1e-5 of its norm: what fits the memory is not part of the experiment."""
    whole = gradient(make(tiny_weights, suite), [[0, 1, 2, 3]])
    others = {
        "micro-batches": gradient(make(tiny_weights, suite, runtime=Runtime(micro_batch=1)), [[0], [1, 2], [3]]),
        "checkpoint": gradient(make(tiny_weights, suite), [[0, 1, 2, 3]], checkpoint=True),
        "eager": gradient(make(tiny_weights, suite, runtime=Runtime(attention="eager")), [[0, 1, 2, 3]]),
    }
    for name, other in others.items():
        assert (whole - other).norm() <= 1e-5 * whole.norm(), name


def test_float16_gradients_survive_by_scaling(tiny_weights: Path) -> None:
    """A loss of DDPO's size, divided by latent and batch: scaled, float16's gradient is float32's; unscaled it is lost."""
    from overopt_bench.compute.optimizer import Optimizer

    seen = {}
    for precision, scaled in (("float32", False), ("float16", True), ("float16", False)):
        policy = make(tiny_weights, precision=precision)
        optimizer = Optimizer(
            policy.trainable(), lr=1e-3, weight_decay=0, max_grad_norm=1e9, world=policy.world, scaled=scaled
        )
        x, rows = noise(policy)[0], torch.arange(2)
        step = policy.transition(x, torch.ones_like(rows), PROMPTS)
        kept: list[torch.Tensor] = []
        optimizer.adamw.register_step_pre_hook(
            lambda *_, kept=kept, policy=policy: kept.append(torch.cat([p.grad.flatten() for p in policy.trainable()]))  # type: ignore[misc]
        )
        optimizer.backward(step.mean.sum() * 1e-9)
        assert optimizer.step() > 0 or not scaled
        seen[precision, scaled] = kept[0]
    truth = seen["float32", False]
    assert (seen["float16", True] - truth).norm() < 0.05 * truth.norm()
    assert (seen["float16", False] - truth).norm() > 0.5 * truth.norm()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: index | {"_class_name": "FluxPipeline"}, "holds a FluxPipeline; what can be trained are"),
        (lambda index: {}, "model_index.json cannot be read"),
    ],
)
def test_a_pipeline_of_another_kind_is_refused(
    damage: Any, message: str, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_weights / "stable-diffusion-v1-4", tmp_path / "model")
    index = tmp_path / "model/model_index.json"
    index.write_text(json.dumps(damage(json.loads(index.read_text()))))
    words = [*RUN, "--model", str(tmp_path / "model"), "--weights", str(tiny_weights)]
    assert cli.main([*words, "--device", "cpu", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and not (tmp_path / "out").exists()


def test_inpainting_is_refused(tiny_weights: Path) -> None:
    pipeline = get_suite("sd14", tiny_weights).pipeline()
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(UserError, match="inpainting is not supported"):
        DiffusionPolicy(pipeline, num_steps=3, guidance_scale=1.0, eta=1.0, lora_rank=2, lora_alpha=2, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such/folder"], "neither a folder nor a Hub id"),
        (["--suite", "mini", "--model", "x/y"], "--model goes with --suite sd"),
        (["--suite", "sd"], "needs --model"),
        (["--suite", "sd14", "--precision", "float8"], "precision"),
        (["--suite", "sd14", "--attention", "xformer"], "there is no --attention 'xformer'; did you mean"),
        (["--suite", "sd14", "--micro-batch", "0"], "must be at least 1"),
        (["--suite", "sd14", "--preset", "tdpo-papers"], "did you mean 'tdpo-paper'"),
        (["--suite", "sd14", "--prompts", "/no/file"], "--prompts /no/file"),
        (["--suite", "sd14", "--device", "cuda"], "CUDA devices here"),
    ],
)  # fmt: skip
def test_bad_options_are_one_line(
    options: list[str], message: str, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    words = [*RUN, "--weights", str(tiny_weights), "--out", str(tmp_path / "o")]
    device = [] if "--device" in options else ["--device", "cpu"]
    assert cli.main([*words, *device, *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1] and lines[-1].startswith("error:") and not (tmp_path / "o").exists()


def test_own_prompts_are_trained_on(tiny_weights: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cube\n\na blue ball\n")
    words = ["run", "--algo", "base", "--proxy", "aesthetic", "--suite", "sd14", "--weights", str(tiny_weights), *SMALL]
    assert cli.main([*words, "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "sd14/aesthetic/base/seed0/metrics.jsonl").read_text().splitlines()
    train = next(row for row in map(json.loads, rows) if row["event"] == "scores" and row["split"] == "train")
    assert set(train["prompts"]) <= {"a red cube", "a blue ball"}


def test_an_ensemble_trains_and_records_its_scales(tiny_weights: Path, tmp_path: Path) -> None:
    words = [
        "run",
        "--algo",
        "alignprop",
        "--set",
        "batch_size=4",
        "--proxy",
        "min:aesthetic+clipscore",
        "--suite",
        "sd14",
    ]
    assert cli.main([*words, "--weights", str(tiny_weights), *SMALL, "--out", str(tmp_path)]) == 0
    rows = (tmp_path / "sd14/min-aesthetic+clipscore/alignprop/seed0/metrics.jsonl").read_text().splitlines()
    events = [json.loads(row) for row in rows]
    (scales,) = [e for e in events if e["event"] == "calibration"]
    assert scales["aesthetic/std"] > 0 and scales["images"] == 128
    last = [e for e in events if e["event"] == "eval"][-1]
    assert "train/min:aesthetic+clipscore/mean" in last
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0


def test_the_preset_is_the_paper(tiny_weights: Path, tmp_path: Path) -> None:
    """Its numbers are the algorithms' defaults, which come from the same sources; a difference would be a mistake."""
    from overopt_bench.config import resolve
    from overopt_bench.presets import read_presets

    preset = read_presets(["tdpo-paper"])
    for algo, params in preset["algorithms"].items():
        defaults = resolve({"algo": algo, "proxy": "aesthetic", "suite": "sd14"}).params
        differing = {k for k, v in params.items() if list(v if isinstance(v, list) else [v]) != list(
            defaults[k] if isinstance(defaults[k], list | tuple) else [defaults[k]])}  # fmt: skip
        assert differing == ({"truncation", "loss"} if algo == "alignprop" else set()), algo
    words = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--preset", "tdpo-paper", "--weights", str(tiny_weights)]
    assert cli.main([*words, *SMALL, *EPOCH, "--out", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "sd14/aesthetic/ddpo/seed0/config.json").read_text())["config"]
    assert config["params"]["samples_per_epoch"] == 4 and config["budget"] == 8  # the command line wins
    assert config["guidance_scale"] == 5.0 and config["precision"] == "float16"


@pytest.mark.slow
def test_compiled_is_the_same_policy(tiny_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the adapter, and with a gradient; traced as always, but run by torch's fastest compiler to compile."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, compiled = make(tiny_weights), make(tiny_weights, runtime=Runtime(compile=True))
    # as many images as ``gradient`` has: tracing for any number of them takes minutes
    a, b = (policy.sample(noise(policy, 4), PROMPTS * 2, with_kl=True) for policy in (plain, compiled))
    torch.testing.assert_close(b[0].latents, a[0].latents, rtol=1e-4, atol=1e-4)
    assert a[1] is not None and b[1] is not None and a[1].sum() > 0
    torch.testing.assert_close(b[1], a[1], rtol=1e-3, atol=1e-3)
    whole, other = gradient(plain, [[0, 1, 2, 3]]), gradient(compiled, [[0, 1, 2, 3]])
    assert (whole - other).norm() <= 1e-4 * whole.norm()
