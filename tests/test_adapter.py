"""The adapter's file: the LoRA at any rank and alpha, written like a checkpoint, also across an interruption."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open

from overopt_bench import cli
from overopt_bench.diffusion.adapter import LORA_TARGETS
from overopt_bench.diffusion.policy import DiffusionPolicy
from overopt_bench.registry import get_suite
from overopt_bench.suites.mini import WEIGHTS
from overopt_bench.training import loop as train

RUN = [
    "run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--device", "cpu", "--num-steps", "2", "--budget", "16",
    "--eval-points", "3", "--eval-images", "4", "--set", "samples_per_epoch=8", "--set", "images_per_prompt=4",
    "--lora-rank", "4", "--lora-alpha", "16",
]  # fmt: skip
FILE = "adapter/pytorch_lora_weights.safetensors"


def make(rank: int, alpha: int, perturb: float = 0.0) -> DiffusionPolicy:
    policy = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=4, guidance_scale=1.5, eta=1.0, lora_rank=rank, lora_alpha=alpha, seed=0
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in policy.trainable():
            p += perturb * torch.randn(p.shape, generator=g)
    return policy


@pytest.mark.parametrize(("rank", "alpha"), [(4, 16), (4, 1), (1, 3), (8, 8)])
def test_plain_diffusers_scales_it_as_the_policy(rank: int, alpha: int, tmp_path: Path) -> None:
    """The U-Net's own output for the same input: everything but the adapter's file is out of the way."""
    policy = make(rank, alpha, perturb=0.1)
    policy.save_adapter(tmp_path)
    pipeline = StableDiffusionPipeline.from_pretrained(WEIGHTS / "pipeline", safety_checker=None)
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 4, 8, 8, generator=g), torch.tensor([801, 401]), policy.encode(["fox", "owl"]).embeds
    with torch.no_grad():
        base = pipeline.unet(*inputs, return_dict=False)[0]
        pipeline.load_lora_weights(tmp_path)
        theirs, ours = (unet(*inputs, return_dict=False)[0] for unet in (pipeline.unet, policy.unet))
    assert (ours - base).abs().max() > 0.01
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_the_header_has_what_the_oldest_supported_diffusers_asks_for(tmp_path: Path) -> None:
    """0.34 looks for ``rank_pattern``; keys that an older peft does not know would be refused, so there are no others."""
    make(4, 16).save_adapter(tmp_path)
    with safe_open(tmp_path / Path(FILE).name, "pt") as file:
        header = file.metadata()
    facts = {"r": 4, "lora_alpha": 16, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": list(LORA_TARGETS)}
    assert header.keys() == {"lora_adapter_metadata"}
    assert json.loads(header["lora_adapter_metadata"]) == {f"unet.{key}": value for key, value in facts.items()}


def test_what_was_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    saved, loaded = make(3, 5, perturb=0.1), make(3, 5)
    saved.save_adapter(tmp_path)
    loaded.load_adapter(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(saved.trainable(), loaded.trainable(), strict=True))


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C once the run has been saved ``after`` times."""
    save, calls = train._Session._save, [0]

    def once(session: Any) -> None:
        save(session)
        calls[0] += 1
        if calls[0] == after:
            raise KeyboardInterrupt

    monkeypatch.setattr(train._Session, "_save", once)


def test_a_resumed_run_ends_with_the_same_file_and_ordinary_permissions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = os.umask(0o027)
    try:
        assert cli.main([*RUN, "--out", str(tmp_path / "whole")]) == 0
    finally:
        os.umask(old)
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)
        assert cli.main([*RUN, "--out", str(tmp_path / "cut")]) == 130
    assert cli.main([*RUN, "--out", str(tmp_path / "cut")]) == 0
    whole, cut = (tmp_path / name / "mini/aesthetic/ddpo/seed0" for name in ("whole", "cut"))
    assert (whole / FILE).read_bytes() == (cut / FILE).read_bytes()
    assert (whole / FILE).stat().st_mode & 0o777 == 0o640
    assert {path.name for path in (whole / "adapter").iterdir()} == {Path(FILE).name}


def test_a_disk_that_fills_up_is_one_line_and_the_file_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, write = tmp_path / "mini/aesthetic/ddpo/seed0", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if not (folder / FILE).exists():
            return write(path, content)
        write(path, content[:1000])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        assert cli.main([*RUN, "--out", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "No space left on device" in error and "run the same command again to go on" in error
    assert [path.name for path in (folder / "adapter").iterdir()] == [Path(FILE).name]
    start = DiffusionPolicy(
        get_suite("mini").pipeline(), num_steps=2, guidance_scale=1.0, eta=1.0, lora_rank=4, lora_alpha=16, seed=0
    )
    start.load_adapter(folder / "adapter")  # that of the first evaluation, whole
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"


def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spoilt in the second round, where no loss and no gradient shows it; the run fails and goes on from before."""
    folder, step = tmp_path / "mini/aesthetic/ddpo/seed0", train._Session._step

    def spoil(session: Any) -> None:
        step(session)
        if session.round == 2:
            session.policy.trainable()[0].data[0, 0] = float("nan")

    with monkeypatch.context() as patch:
        patch.setattr(train._Session, "_step", spoil)
        patch.setattr(train._Session, "_evaluate", lambda session: setattr(session, "point", session.point + 1))
        assert cli.main([*RUN, "--out", str(tmp_path)]) == 1
    assert "tensors of the adapter are not finite" in capsys.readouterr().err
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    for path in (folder / "checkpoint").iterdir():
        state = torch.load(path, weights_only=True)["policy"]
        assert all(bool(weight.isfinite().all()) for weight in state.values())
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0


def test_a_checkpoint_with_nan_falls_back_to_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupted(patch, after=2)
        assert cli.main([*RUN, "--out", str(tmp_path)]) == 130
    newest = max((tmp_path / "mini/aesthetic/ddpo/seed0/checkpoint").iterdir())
    state = torch.load(newest, weights_only=True)
    next(iter(state["policy"].values()))[0, 0] = float("nan")
    torch.save(state, newest)
    capsys.readouterr()
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert f"checkpoint {newest.name} is damaged" in shown.err and "going on at 0 queries" in shown.out
