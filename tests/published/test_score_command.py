"""``overopt-bench score`` with every published reward."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from published_rewards import NAMES, PICTURES

from overopt_bench import cli
from overopt_bench.rewards.published import PublishedReward

pytestmark = pytest.mark.usefixtures("one_thread")


def score_command(folder: Path, names: Sequence[str], *rest: str) -> list[str]:
    options = [word for name in names for word in ("--reward", name)]
    return ["score", "--suite", "sd14", "--weights", str(folder), "--device", "cpu", *options, *rest]


def test_score_with_every_real_reward(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: dict[str, PublishedReward]
) -> None:
    """The CSV and the table hold what the rewards give for the pictures as they are on disk."""
    paths = []
    for name in ("wide", "tall", "thirds"):
        PICTURES[name].save(tmp_path / f"{name}.png")
        paths.append(str(tmp_path / f"{name}.png"))
    assert cli.main([*score_command(weights, NAMES, "--prompt", "a cat", "--csv"), *paths]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["image"] for row in rows] == paths and list(rows[0]) == ["image", *NAMES]
    assert cli.main([*score_command(weights, NAMES, "--prompt", "a cat"), *paths]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["image", *NAMES] and len(lines) == 4
    for name in NAMES:
        truth = loaded[name].score_pictures([PICTURES[n] for n in ("wide", "tall", "thirds")], ["a cat"] * 3, 512)
        assert [float(row[name]) for row in rows] == pytest.approx(truth.tolist(), rel=1e-5, abs=1e-6)
        column = lines[0].split().index(name)
        assert [float(line.split()[column]) for line in lines[1:]] == pytest.approx(truth.tolist(), abs=6e-5)


def test_score_names_a_bad_picture_after_the_others(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "good.png")
    PICTURES["wide"].save(tmp_path / "bad.png")
    raw = (tmp_path / "bad.png").read_bytes()
    (tmp_path / "bad.png").write_bytes(raw[: len(raw) // 2])
    files = [str(tmp_path / name) for name in ("bad.png", "good.png", "absent.png")]
    assert cli.main([*score_command(weights, ["imagereward"], "--prompt", "a cat", "--csv"), *files]) == 1
    out, err = capsys.readouterr()
    assert [row["image"] for row in csv.DictReader(io.StringIO(out))] == [files[1]]
    assert err.startswith("error: ") and err.count("\n") == 1 and "bad.png" in err and "absent.png" in err


def rgba(image: Image.Image) -> Image.Image:
    return image.convert("RGBA")


def deep(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def same(image: Image.Image) -> Image.Image:
    return image


@pytest.mark.parametrize(
    ("file", "convert", "equals"),
    [
        ("rgba.png", rgba, same),
        ("grey.png", lambda image: image.convert("L"), lambda image: image.convert("L").convert("RGB")),
        ("deep.png", deep, lambda image: image.convert("L").convert("RGB")),
        ("cmyk.tiff", lambda image: image.convert("CMYK"), lambda image: image.convert("CMYK").convert("RGB")),
        ("palette.png", lambda image: image.quantize(16), lambda image: image.quantize(16).convert("RGB")),
        ("turned.png", same, lambda image: image.transpose(Image.Transpose.ROTATE_270)),
    ],
)
def test_score_takes_pictures_of_any_mode(
    file: str, convert: Callable[[Image.Image], Image.Image], equals: Callable[[Image.Image], Image.Image],
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], loaded: dict[str, PublishedReward],
) -> None:  # fmt: skip
    """Each scores as the RGB picture that a person sees; EXIF's orientation 6 is a quarter turn clockwise."""
    exif = Image.Exif()
    if file == "turned.png":
        exif[0x0112] = 6
    convert(PICTURES["wide"]).save(tmp_path / file, exif=exif)
    names = ["aesthetic", "imagereward", "hpsv2"]
    assert cli.main([*score_command(weights, names, "--prompt", "a cat", "--csv"), str(tmp_path / file)]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    for name in names:
        truth = loaded[name].score_pictures([equals(PICTURES["wide"])], ["a cat"], 512).item()
        assert float(row[name]) == pytest.approx(truth, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("min:aesthetic+imagereward", "a cat", "standardised on a run's base samples; score its members by themselves"),
        ("pickscore", "", "--reward pickscore needs a --prompt; without one there are aesthetic"),
        ("imagerward", "a cat", "did you mean 'imagereward'?"),
        ("human", "a cat", "not in the suite 'sd'"),
    ],
)
def test_score_refuses_with_status_2(
    name: str, prompt: str, message: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "a.png")
    assert cli.main([*score_command(weights, [name], "--prompt", prompt), str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and err.count("\n") == 1


def test_score_without_the_weights_is_one_line(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    PICTURES["tall"].save(tmp_path / "a.png")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert cli.main([*score_command(empty, ["imagereward"], "--prompt", "x"), str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "hf download zai-org/ImageReward ImageReward.pt" in err
