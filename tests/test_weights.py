"""Where weights come from: a folder, the Hub's cache at the pinned revision, and what is said where they are missing."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from overopt_bench import cli
from overopt_bench.errors import UserError
from overopt_bench.recording.sessions import read_sessions
from overopt_bench.registry import get_suite
from overopt_bench.rewards.clip import CLIP_L, PICKSCORE
from overopt_bench.rewards.hpsv2 import HPS_V2
from overopt_bench.rewards.imagereward import IMAGEREWARD
from overopt_bench.suites.stable_diffusion import SD14
from overopt_bench.weights import Repo, Weights, digest

BASE = SD14.repo
assert BASE is not None
RUN = [
    "run", "--algo", "ddpo", "--proxy", "aesthetic", "--gold", "imagereward", "--device", "cpu", "--num-steps", "2", "--budget", "4",
    "--eval-points", "2", "--eval-images", "4", "--set", "samples_per_epoch=4",
]  # fmt: skip


def cache(folder: Path, repo: Repo, source: Path) -> None:
    """A repository as the Hub's client keeps it: blobs named by their hash, and a snapshot of links to them."""
    root = folder / f"models--{repo.id.replace('/', '--')}"
    (root / "blobs").mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(repo.revision)
    for file in repo.files:
        raw = (source / file).read_bytes()
        blob = root / "blobs" / hashlib.sha256(raw).hexdigest()
        blob.write_bytes(raw)
        link = root / "snapshots" / repo.revision / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


@pytest.mark.slow
def test_the_hubs_cache_is_enough(
    tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a network and without --weights; then one file is gone, and the error has the command that fetches it."""
    hub = tmp_path / "hub"
    # what HF_HUB_CACHE and HF_HUB_OFFLINE set in a new process
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for repo, name in ((BASE, "stable-diffusion-v1-4"), (CLIP_L, CLIP_L.name), (IMAGEREWARD, "ImageReward")):
        cache(hub, repo, tiny_weights / name)
    for words in (["--suite", "sd14"], ["--model", f"{BASE.id}@{BASE.revision}"]):
        assert cli.main([*RUN, *words, "--out", str(tmp_path / "out")]) == 0
    (config,) = (tmp_path / "out").glob("sd14/*/*/*/config.json")
    (provenance,) = read_sessions(config.parent)
    unet = tiny_weights / "stable-diffusion-v1-4/unet/diffusion_pytorch_model.safetensors"
    assert (
        provenance["weights"]["unet/diffusion_pytorch_model.safetensors"]
        == hashlib.sha256(unet.read_bytes()).hexdigest()
    )
    assert cli.main(["doctor", "--suite", "sd14"]) == 0
    capsys.readouterr()
    (hub / "models--zai-org--ImageReward/snapshots" / IMAGEREWARD.revision / "ImageReward.pt").unlink()
    assert cli.main([*RUN, "--suite", "sd14", "--seed", "1", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1 and IMAGEREWARD.command() in error
    assert not list((tmp_path / "out").glob("sd14/*/*/seed1"))
    assert cli.main(["doctor", "--suite", "sd14"]) == 1
    out, error = capsys.readouterr()
    assert "zai-org/ImageReward is missing" in error
    assert IMAGEREWARD.command() in out and "model.safetensors is not the published one" in out


def test_commands_name_everything_that_is_needed() -> None:
    assert HPS_V2.command() == (
        "hf download xswu/HPSv2 HPS_v2_compressed.pt --revision 697403c78157020a1ae59d23f111aa58ced35b0a"
    )
    assert PICKSCORE.command(Path("/my weights")).endswith("--local-dir '/my weights/PickScore_v1'")
    for repo in (BASE, CLIP_L, IMAGEREWARD, PICKSCORE, HPS_V2):
        assert len(repo.revision) == 40 and all(size > 0 for size in repo.files.values())
        assert repo.sha256.keys() <= repo.files.keys()


def test_a_folder_is_all_or_nothing(tiny_weights: Path, tmp_path: Path) -> None:
    """What is missing from --weights is not looked for elsewhere: a mixture would be nobody's model."""
    shutil.copytree(tiny_weights / "stable-diffusion-v1-4", tmp_path / "stable-diffusion-v1-4")
    (tmp_path / "stable-diffusion-v1-4/vae/config.json").unlink()
    assert Weights(tmp_path).absent(BASE) == ["vae/config.json"]
    with pytest.raises(
        UserError, match=r"lacks vae/config.json; get it: hf download CompVis/stable-diffusion-v1-4 .* --local-dir"
    ):
        _ = get_suite("sd14", tmp_path).pipeline()


def test_a_digest_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    for content in (b"one", b"another"):
        path.write_bytes(content)
        assert digest(path) == hashlib.sha256(content).hexdigest()


def test_a_run_goes_on_with_its_own_weights_only(
    tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*RUN, "--suite", "sd14", "--out", str(tmp_path / "out"), "--weights"]
    assert cli.main([*words, str(tiny_weights)]) == 0
    shutil.copytree(tiny_weights, tmp_path / "other")
    path = tmp_path / "other/ImageReward/ImageReward.pt"
    state = torch.load(path, weights_only=True)
    state["mlp.layers.7.bias"] += 1
    torch.save(state, path)
    capsys.readouterr()
    assert cli.main([*words, str(tmp_path / "other")]) == 2
    assert "was made with other weights of imagereward" in capsys.readouterr().err


def test_doctor_without_a_gpu(tiny_weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cli.main(["doctor", "--suite", "mini"]) == 0
    assert "ship with the package" in capsys.readouterr().out
    assert cli.main(["doctor", "--suite", "sd14", "--weights", str(tiny_weights)]) == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("tdpo_r", "PFLOP", "GB at micro-batch 1", "0.0 GB to fetch", "takes weeks here")
    )
    assert cli.main(["doctor", "--suite", "sd"]) == 2
    assert "needs --model" in capsys.readouterr().err
