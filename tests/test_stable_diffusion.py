"""The suites of Stable Diffusion on small random checkpoints in the real formats: the literal commands, end to end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from overopt_bench import cli
from overopt_bench.recording.sessions import read_sessions

SMALL = ["--num-steps", "3", "--budget", "8", "--eval-points", "2", "--eval-images", "4", "--device", "cpu"]
RUN = ["run", "--algo", "ddpo", "--proxy", "aesthetic"]
EPOCH = ["--set", "samples_per_epoch=4"]


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "no/such/folder"], "neither a folder nor a Hub id"),
        (["--suite", "mini", "--model", "x/y"], "--model goes with --suite sd"),
        (["--suite", "sd"], "needs --model"),
        (["--suite", "sd14", "--precision", "float8"], "precision"),
        (["--suite", "sd14", "--attention", "xformer"], "attention='xformer': should be 'sdpa', 'eager' or 'xformers'; did you mean"),
        (["--suite", "sd14", "--micro-batch", "0"], "micro_batch=0: should be greater than or equal to 1"),
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
    """Its numbers are the algorithms' defaults, from the same sources, but for those that say in their place why not."""
    from overopt_bench.config import resolve
    from overopt_bench.presets import read_presets

    preset = read_presets(["tdpo-paper"])
    for algo, params in preset["algorithms"].items():
        defaults = resolve({"algo": algo, "proxy": "aesthetic", "suite": "sd14"}).params
        differing = {k for k, v in params.items() if list(v if isinstance(v, list) else [v]) != list(
            defaults[k] if isinstance(defaults[k], list | tuple) else [defaults[k]])}  # fmt: skip
        ours = {"alignprop": {"truncation", "loss"}, "tdpo": {"probe", "probe_size"}, "tdpo_r": {"probe", "probe_size"}}
        assert differing == ours.get(algo, set()), algo
    words = ["run", "--algo", "ddpo", "--proxy", "aesthetic", "--preset", "tdpo-paper", "--weights", str(tiny_weights)]
    assert cli.main([*words, *SMALL, *EPOCH, "--out", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "sd14/aesthetic/ddpo/seed0/config.json").read_text())["config"]
    assert config["params"]["samples_per_epoch"] == 4 and config["budget"] == 8  # the command line wins
    assert config["guidance_scale"] == 5.0 and config["precision"] == "float16"
