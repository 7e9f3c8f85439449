"""``overopt-bench score``: pictures of any kind, the score of their pixels, and files that are no pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from overopt_bench import cli
from overopt_bench.errors import UserError
from overopt_bench.pictures import read_picture, square
from overopt_bench.registry import get_reward, get_suite
from overopt_bench.rewards.jpeg import jpeg_kilobytes


def pixels_of(path: Path, side: int) -> torch.Tensor:
    return square(read_picture(path), side)


CORNER = np.zeros((32, 32, 3), np.uint8)
CORNER[:16, :16] = (200, 100, 50)  # the upper left quarter, the rest black


def test_an_rgb_picture_of_the_right_size_is_its_pixels(tmp_path: Path) -> None:
    Image.fromarray(CORNER).save(tmp_path / "a.png")
    pixels = torch.from_numpy(CORNER).permute(2, 0, 1).float() / 255
    torch.testing.assert_close(pixels_of(tmp_path / "a.png", 32), pixels)


def test_transparency_is_white_and_what_is_not_square_is_padded(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert bool((pixels_of(tmp_path / "clear.png", 32) == 1).all())
    Image.new("RGB", (64, 32)).save(tmp_path / "wide.png")
    wide = pixels_of(tmp_path / "wide.png", 32)
    assert bool((wide[:, :8] == 1).all() and (wide[:, 8:24] == 0).all() and (wide[:, 24:] == 1).all())


def test_sixteen_bits_grey_cmyk_palette_and_rotation(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 32768, np.uint16)).save(tmp_path / "deep.png")
    assert pixels_of(tmp_path / "deep.png", 32).mean().item() == pytest.approx(0.5, abs=0.01)
    grey = pixels_of_image(Image.new("L", (8, 8), 51), tmp_path / "grey.png")
    assert grey.shape == (3, 32, 32) and grey.mean().item() == pytest.approx(0.2)
    assert pixels_of_image(Image.new("CMYK", (8, 8)), tmp_path / "c.jpg").mean().item() == pytest.approx(1, abs=0.01)
    assert pixels_of_image(Image.new("RGB", (8, 8), "red").convert("P"), tmp_path / "p.png")[0].mean().item() == 1
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned clockwise by a quarter
    Image.fromarray(CORNER).save(tmp_path / "turned.png", exif=exif)
    turned = pixels_of(tmp_path / "turned.png", 32)
    assert turned[0, :16, 16:].mean().item() == pytest.approx(200 / 255) and turned[0, :16, :16].mean().item() == 0


def pixels_of_image(image: Image.Image, path: Path) -> torch.Tensor:
    image.save(path)
    return pixels_of(path, 32)


@pytest.mark.parametrize("damage", [lambda raw: b"", lambda raw: b"no picture", lambda raw: raw[: len(raw) // 2]])
def test_what_is_no_picture_is_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "bad.png").write_bytes(damage(buffer.getvalue()))
    with pytest.raises(UserError, match=r"bad\.png is no picture"):
        read_picture(tmp_path / "bad.png")


def test_scores_are_those_of_the_rewards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(CORNER).save(tmp_path / "a.png")
    Image.fromarray(255 - CORNER).save(tmp_path / "b.png")
    files = [str(tmp_path / n) for n in ("a.png", "b.png")]
    words = ["score", "--suite", "mini", "--reward", "human", "--reward", "jpeg_compressibility", "--device", "cpu"]
    assert cli.main([*words, "--prompt", "fox face", "--csv", *files]) == 0
    table = pd.read_csv(io.StringIO(capsys.readouterr().out)).set_index("image")
    images = torch.stack([pixels_of(Path(f), 32) for f in files])
    with torch.no_grad():
        truth = get_reward("human", get_suite("mini"))(images, ["fox face"] * 2)
    np.testing.assert_allclose(table.loc[files, "human"], truth.numpy(), rtol=1e-5)
    np.testing.assert_allclose(table.loc[files, "jpeg_compressibility"], -jpeg_kilobytes(images).numpy(), rtol=1e-5)


def test_a_bad_file_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(CORNER).save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no picture")
    words = ["score", "--suite", "mini", "--reward", "aesthetic", "--device", "cpu"]
    assert cli.main([*words, str(tmp_path / "bad.png"), str(tmp_path / "a.png")]) == 1
    out, err = capsys.readouterr()
    assert "a.png" in out and "bad.png is no picture" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reward", "aestetic"], "did you mean 'aesthetic'?"),
        (["--reward", "human"], "needs a --prompt; without one there are"),
        (["--reward", "human", "--prompt", "a thing"], "the judge knows no name"),
        ([], "reward"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(CORNER).save(tmp_path / "a.png")
    assert cli.main(["score", "--suite", "mini", "--device", "cpu", *options, str(tmp_path / "a.png")]) == 2
    out, err = capsys.readouterr()
    assert message in err and out == "" and err.count("\n") == 1
