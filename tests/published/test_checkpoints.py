"""Checkpoints that are not what they should be, and the files beside them."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_rewards import CLIP, FILES, NAMES, PICK, complaint, get, put, spoiled

from overopt_bench.rewards.clip import load_clip

pytestmark = pytest.mark.usefixtures("one_thread")


STRANGERS = {
    "aesthetic": FILES["pickscore"], "clipscore": FILES["pickscore"], "pickscore": FILES["clipscore"],
    "imagereward": FILES["hpsv2"], "hpsv2": FILES["imagereward"], "hpsv2_1": FILES["imagereward"],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_another_rewards_checkpoint(name: str, weights: Path, tmp_path: Path) -> None:
    """HPSv2's file in ImageReward's place and so on: keys or shapes are named, and nothing is loaded in part."""
    path = spoiled(weights, tmp_path, FILES[name])
    shutil.copyfile(weights / STRANGERS[name], path)
    message = complaint(name, tmp_path)
    assert str(path) in message and re.search("lacks|has besides|has shapes|nothing to give for", message)
    assert re.search(r"visual|vision|text|position", message)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_keys_and_shapes_are_strict(name: str, change: str, weights: Path, tmp_path: Path) -> None:
    """One tensor too few, too many, or longer than it should be: the first is named."""
    path = spoiled(weights, tmp_path, FILES[name])
    state = get(path)
    key = next(k for k in sorted(state) if k.endswith("bias") and "vision_proj" not in k and "text_proj." not in k)
    if change == "missing":
        del state[key]
    elif change == "extra":
        state["mlp.surprise"] = torch.zeros(3)
    else:
        state[key] = torch.zeros(len(state[key]) + 1)
    put(path, state)
    message = complaint(name, tmp_path)
    word = {"missing": "lacks", "extra": "has besides", "shape": "has shapes"}[change]
    assert f"{path} is not the checkpoint of this model: it {word} " in message
    assert ("surprise" if change == "extra" else "bias") in message
    if change == "shape":
        assert re.search(r"\(\d+,\), not \(\d+,\)", message)


@pytest.mark.parametrize("name", ["pickscore", "imagereward", "hpsv2"])
def test_a_text_file_or_half_a_file(name: str, weights: Path, tmp_path: Path) -> None:
    path = spoiled(weights, tmp_path, FILES[name])
    raw = path.read_bytes()
    for content in (b"<html>404: not found</html>", raw[: len(raw) // 2], b""):
        path.write_bytes(content)
        assert re.search(
            rf"{re.escape(str(path))} cannot be read as weights .*fetch it again", complaint(name, tmp_path)
        )


class Payload:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["imagereward", "hpsv2", "hpsv2_1"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(name: str, writer: str, weights: Path, tmp_path: Path) -> None:
    """``weights_only``: the code does not run, and the file is named."""
    path, proof = spoiled(weights, tmp_path, FILES[name]), tmp_path / "it ran"
    content = {"state_dict": get(path), "hello": Payload(proof)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    assert f"{path} cannot be read as weights" in complaint(name, tmp_path)
    assert not proof.exists()


@pytest.mark.parametrize("name", ["imagereward", "hpsv2"])
def test_a_checkpoint_that_is_a_list(name: str, weights: Path, tmp_path: Path) -> None:
    path = spoiled(weights, tmp_path, FILES[name])
    torch.save([torch.zeros(2)], path)
    assert f"{path} holds a list, not a state dict" in complaint(name, tmp_path)


PATCH = "blip.visual_encoder.patch_embed.proj.weight"
NONSENSE: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "a matrix for the patches": ("imagereward", lambda state: state | {PATCH: torch.zeros(64, 3)}),
    "a vector for the positions": ("imagereward", lambda state: state | {"blip.visual_encoder.pos_embed": torch.zeros(9)}),
    "no blocks": ("imagereward", lambda state: {key: v for key, v in state.items() if ".blocks." not in key}),
    "a number for a tensor": ("imagereward", lambda state: state | {"mlp.layers.0.bias": 3}),
    "a training checkpoint": ("hpsv2", lambda state: {"epoch": 3, **state}),
}  # fmt: skip


@pytest.mark.parametrize("case", NONSENSE)
def test_a_checkpoint_that_makes_no_sense(case: str, weights: Path, tmp_path: Path) -> None:
    """What the model's sizes are read from is not there, or is no tensor: one line that names the file."""
    name, change = NONSENSE[case]
    path = spoiled(weights, tmp_path, FILES[name])
    put(path, change(get(path)))
    assert str(path) in complaint(name, tmp_path)


MISSING = {
    "aesthetic": ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", CLIP),
    "pickscore": ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800", PICK),
    "imagereward": ("zai-org/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72", "ImageReward"),
    "hpsv2": ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", "HPSv2"),
    "hpsv2_1": ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a", "HPSv2"),
}


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_file_names_the_command(name: str, weights: Path, tmp_path: Path) -> None:
    """The repository, its files, the pinned revision and the folder, ready to be pasted into a shell."""
    path = spoiled(weights, tmp_path, FILES[name])
    path.unlink()
    hub, revision, folder = MISSING[name]
    files = {
        "imagereward": "ImageReward.pt med_config.json", "hpsv2": "HPS_v2_compressed.pt", "hpsv2_1": "HPS_v2.1_compressed.pt",
        "pickscore": "config.json model.safetensors", "aesthetic": "config.json model.safetensors vocab.json merges.txt",
    }[name]  # fmt: skip
    message = complaint(name, tmp_path)
    assert f"{tmp_path / folder} lacks {path.name}; get it: " in message
    assert message.endswith(f"hf download {hub} {files} --revision {revision} --local-dir {tmp_path / folder}")


def test_position_ids_of_old_files_are_ignored(weights: Path, tmp_path: Path) -> None:
    """Checkpoints of 2022 hold two buffers more; the scores are the same."""
    path = spoiled(weights, tmp_path, FILES["pickscore"])
    state = get(path)
    state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(50)[None]
    put(path, state)
    old, new = load_clip(path.parent), load_clip(weights / PICK)
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("imagereward", "ImageReward/med_config.json"),
        ("hpsv2", "HPSv2/open_clip_config.json"),
        ("pickscore", f"{PICK}/config.json"),
    ],
)
def test_a_damaged_configuration_is_named(name: str, file: str, weights: Path, tmp_path: Path) -> None:
    """Half a download of the small file is as likely as of the large one."""
    path = spoiled(weights, tmp_path, file)
    path.write_text(path.read_text()[:40])
    assert path.name in complaint(name, tmp_path)


def test_a_configuration_of_another_size_is_a_difference_of_shapes(weights: Path, tmp_path: Path) -> None:
    """``med_config.json`` gives BERT's sizes: with twice the width the file does not fit."""
    path = spoiled(weights, tmp_path, "ImageReward/med_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 128}))
    assert "has shapes text." in complaint("imagereward", tmp_path)
