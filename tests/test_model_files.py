"""The files of a base model: shards and variants are read and hashed, a folder is a folder, the Hub is asked for what is read."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tiny_checkpoints import edited

from overopt_bench import cli
from overopt_bench.config import resolve
from overopt_bench.errors import UserError
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.registry import get_suite
from overopt_bench.suites.loading import hub_patterns

SD, XL = "stable-diffusion-v1-4", "stable-diffusion-xl-base-1.0"
RUN = [
    "run", "--algo", "ddpo", "--proxy", "jpeg_compressibility", "--budget", "4", "--eval-points", "2", "--eval-images", "4",
    "--device", "cpu", "--set", "samples_per_epoch=4", "--num-steps", "2",
]  # fmt: skip
PLAIN = {f"{part}.safetensors" for part in (
    "text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model",
)}  # fmt: skip


def copy(source: Path, folder: Path) -> Path:
    return edited(source, folder, {})


def shard(model: Path, variant: str | None = None) -> list[Path]:
    """Cut a U-Net's weights into shards, in the place of the one file."""
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    shutil.rmtree(model / "unet")
    unet.save_pretrained(model / "unet", max_shard_size="150KB", variant=variant)
    shards = sorted((model / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    return shards


def to_variant(file: Path, variant: str = "fp16", keep: bool = False) -> Path:
    """A half-precision copy under the variant's name, in the place of the plain file or beside it."""
    target = file.with_name(f"{file.stem}.{variant}.safetensors")
    halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(file).items()}
    save_file(halves, target, metadata={"format": "pt"})
    if not keep:
        file.unlink()
    return target


def unet_state(model: Path) -> dict[str, torch.Tensor]:
    return dict(get_suite("sd", None, str(model)).pipeline().unet.state_dict())


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_read_hashed_and_guarded(
    variant: str | None, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy(tiny_weights / SD, tmp_path / "model")
    before, shards = unet_state(model), shard(model, variant)
    after = unet_state(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    words = [*RUN, "--model", str(model), "--weights", str(tiny_weights), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    (config,) = (tmp_path / "out").glob("sd-*/*/*/*/config.json")
    weights = read_sessions(config.parent)[0]["weights"]
    expected = {f"unet/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in shards}
    assert {k: v for k, v in weights.items() if k.startswith("unet/")} == expected
    assert weights.keys() - expected.keys() == PLAIN - {"unet/diffusion_pytorch_model.safetensors"}
    state = load_file(shards[1])
    save_file({k: v + 1 for k, v in state.items()}, shards[1], metadata={"format": "pt"})
    capsys.readouterr()
    assert cli.main(words) == 2
    assert f"made with other weights of unet/{shards[1].name}" in capsys.readouterr().err
    shards[1].unlink()
    assert cli.main([*words, "--seed", "1"]) == 2
    assert f"lacks unet/{shards[1].name}; fetch it again" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("sd-*/*/*/seed1"))


@pytest.mark.parametrize("name", [SD, XL])
def test_a_folder_of_variants_only_is_a_pipeline(name: str, tiny_weights: Path, tmp_path: Path) -> None:
    model = copy(tiny_weights / name, tmp_path / "model")
    full = unet_state(model)
    variants = {to_variant(file).relative_to(model).as_posix() for file in list(model.rglob("*.safetensors"))}
    suite = get_suite("sd", None, str(model))
    assert suite.weights_hashes().keys() == variants and len(variants) == (3 if name == SD else 4)
    pipeline = suite.pipeline()
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[key], full[key].half().float()) for key in full)


def test_plain_files_come_before_variants_part_by_part(tiny_weights: Path, tmp_path: Path) -> None:
    model = copy(tiny_weights / SD, tmp_path / "model")
    full = unet_state(model)
    to_variant(model / "unet/diffusion_pytorch_model.safetensors", keep=True)
    to_variant(model / "vae/diffusion_pytorch_model.safetensors", "bf16", keep=True)
    vae = to_variant(model / "vae/diffusion_pytorch_model.safetensors")
    suite = get_suite("sd", None, str(model))
    assert suite.weights_hashes().keys() == PLAIN - {"vae/diffusion_pytorch_model.safetensors"} | {f"vae/{vae.name}"}
    pipeline = suite.pipeline()
    assert all(torch.equal(value, full[key]) for key, value in pipeline.unet.state_dict().items())
    halves = load_file(vae)
    assert all(torch.equal(value, halves[key].float()) for key, value in pipeline.vae.state_dict().items())


def test_a_part_that_is_read_from_another_file_is_other_weights(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy(tiny_weights / SD, tmp_path / "model")
    words = [*RUN, "--model", str(model), "--weights", str(tiny_weights), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    to_variant(model / "unet/diffusion_pytorch_model.safetensors")
    capsys.readouterr()
    assert cli.main(words) == 2
    assert "made with other weights of unet/diffusion_pytorch_model.safetensors" in capsys.readouterr().err


def test_pickles_alone_are_refused(tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copy(tiny_weights / SD, tmp_path / "model")
    (model / "unet/diffusion_pytorch_model.safetensors").rename(model / "unet/diffusion_pytorch_model.bin")
    words = [*RUN, "--model", str(model), "--weights", str(tiny_weights), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "has no unet in safetensors (unet/diffusion_pytorch_model.bin is there and is not read" in last
    assert not (tmp_path / "out").exists()
    (model / "unet/diffusion_pytorch_model.bin").unlink()
    assert cli.main(words) == 2
    assert "has no unet in safetensors; needed is unet/diff" in capsys.readouterr().err.splitlines()[-1]


HUB = [
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "unet/config.json", "vae/config.json",
    "text_encoder/config.json", "v1-5-pruned.safetensors", "safety_checker/model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "weights"),
    [
        (
            ["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors",
             "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.non_ema.safetensors",
             "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
            PLAIN,
        ),
        (
            ["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
             "unet/diffusion_pytorch_model.safetensors.index.json", "unet/diffusion_pytorch_model.fp16.safetensors",
             "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"],
            {"unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
             "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"},
        ),
        (
            ["unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
             "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "unet/diffusion_pytorch_model.ema-00001-of-00002.safetensors",
             "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"],
            {"unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.fp16-00002-of-00002.safetensors",
             "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"},
        ),
    ],
    ids=["plain before variants", "shards and variants", "shards of a variant"],
)  # fmt: skip
def test_what_is_read_is_what_is_fetched(
    more: list[str], weights: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a Hub of these files, whose client downloads what its patterns match."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    asked: dict[str, object] = {}

    def download(repo: str, *, revision: str | None, allow_patterns: list[str], local_files_only: bool) -> str:
        got = list(filter_repo_objects(HUB + more, allow_patterns=allow_patterns))
        asked.update(
            repo=repo, revision=revision, got={name for name in got if name.endswith((".safetensors", ".bin"))}
        )
        assert {name for name in HUB if name.endswith((".json", ".txt"))} <= set(got) and not local_files_only
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: HUB + more)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(UserError, match="no diffusers pipeline"):  # the folder that it gave is empty
        get_suite("sd", None, "owner/name@refs/pr/7").weights_hashes()
    assert asked == {"repo": "owner/name", "revision": "refs/pr/7", "got": weights}


def test_a_repository_of_pickles_is_refused_before_it_is_fetched() -> None:
    with pytest.raises(UserError, match=r"owner/name has no unet in safetensors \(unet/diffusion_pytorch_model.bin is"):
        hub_patterns([*HUB, "unet/diffusion_pytorch_model.bin"], "owner/name")


@pytest.mark.parametrize(
    "spelling", ["me@uni/sd 15", "me@uni/sd 15/", "./me@uni/sd 15", "~/me@uni/sd 15", "{}/me@uni/sd 15", "link@v1", "owner/name"]
)  # fmt: skip
def test_a_folder_is_a_folder(
    spelling: str, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in its path, and also where a Hub id could have its name."""
    copy(tiny_weights / SD, tmp_path / "me@uni/sd 15")
    (tmp_path / "link@v1").symlink_to(tmp_path / "me@uni/sd 15")
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/name").symlink_to(tmp_path / "me@uni/sd 15")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "w@1").symlink_to(tiny_weights)
    words = [*RUN, "--model", spelling.format(tmp_path), "--weights", "w@1", "--out", "out"]
    assert cli.main(words) == 0
    (config,) = (tmp_path / "out").glob("sd-*/*/*/*/config.json")
    assert read_sessions(config.parent)[0]["weights"].keys() == PLAIN


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/no@where/sd15", "--model /no@where/sd15: neither a folder nor a Hub id such as owner/name or owner/name@REVISION"),
        ("~nobody-here/sd15", "neither a folder nor a Hub id"),
        ("C:\\models\\sd15", "neither a folder nor a Hub id"),
        ("model.safetensors", "--model model.safetensors is a file; what is needed is the folder of a diffusers pipeline"),
    ],
)  # fmt: skip
def test_what_is_no_folder(
    model: str, message: str, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").write_bytes(b"")
    assert cli.main([*RUN, "--model", model, "--weights", str(tiny_weights), "--out", "out"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not Path("out").exists()


def test_a_models_name_fits_a_file_system() -> None:
    def name(model: str) -> str:
        return (
            resolve({"algo": "ddpo", "proxy": "jpeg_compressibility", "suite": "sd", "model": model})
            .folder(Path("out"))
            .parts[1]
        )

    assert name("owner/name@v1") == "sd-owner-name-v1" and name("/a/b_c/") == "sd-a-b_c"  # as they always were
    assert name("/models/猫") != name("/models/狗")
    deep = "/".join(["models", "猫" * 60] * 9)
    names = {name(f"{deep}/{last}") for last in ("a", "b")} | {name(f"/other/{deep}/a")}
    assert len(names) == 3 and all(len(os.fsencode(n)) <= 255 for n in names)
