"""Grey ramps of every depth that TIFF and PNG have score as the 8-bit ramp does, or are refused in one line."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image

from overopt_bench import cli
from overopt_bench.errors import UserError
from overopt_bench.pictures import read_picture

RAMP = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's SampleFormat


def tiff(pixels: NDArray[np.generic], kind: int, white_is_zero: bool = False) -> bytes:
    """A grey TIFF by its specification, in the byte order and depth of the array; Pillow writes few of these."""
    order, raw = (">" if pixels.dtype.byteorder == ">" else "<"), pixels.tobytes()
    tags = [
        (256, 4, pixels.shape[1]), (257, 4, pixels.shape[0]), (258, 3, 8 * pixels.itemsize), (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1), (273, 4, 8), (277, 3, 1), (278, 4, pixels.shape[0]), (279, 4, len(raw)),
        (339, 3, kind),
    ]  # fmt: skip
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(raw))
    entries = [
        struct.pack(order + ("HHIHH" if size == 3 else "HHII"), tag, size, 1, value, *[0] * (size == 3))
        for tag, size, value in tags
    ]
    return head + raw + struct.pack(order + "H", len(tags)) + b"".join(entries) + struct.pack(order + "I", 0)


def png(pixels: NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


UNIT = RAMP / 255
SAME = {
    "float32.tif": tiff(UNIT.astype("<f4"), FLOAT),
    "float32-big-endian.tif": tiff(UNIT.astype(">f4"), FLOAT),
    "float32-white-is-zero.tif": tiff((1 - UNIT).astype("<f4"), FLOAT, white_is_zero=True),
    "int32.tif": tiff((RAMP * 257.0).astype("<i4"), SIGNED),
    "uint32.tif": tiff((RAMP * 257.0).astype("<u4"), UNSIGNED),
    "uint16.tif": tiff((RAMP * 257.0).astype("<u2"), UNSIGNED),
    "uint16-big-endian.tif": tiff((RAMP * 257.0).astype(">u2"), UNSIGNED),
    "uint16-white-is-zero.tif": tiff(((255.0 - RAMP) * 257).astype("<u2"), UNSIGNED, white_is_zero=True),
    "uint8-white-is-zero.tif": tiff(255 - RAMP, UNSIGNED, white_is_zero=True),
    "uint16.png": png((RAMP * 257.0).astype(np.uint16)),
}
NAN = UNIT.copy()
NAN[3, 3] = np.nan
REFUSED = {
    "nan": (tiff(NAN.astype("<f4"), FLOAT), "floats from nan to nan; allowed are 0 to 1"),
    "float-255": (tiff(RAMP.astype("<f4"), FLOAT), "floats from 0 to 255; allowed are 0 to 1"),
    "float-negative": (tiff((2 * UNIT - 1).astype("<f4"), FLOAT), "floats from -1 to 1; allowed are 0 to 1"),
    "infinite": (tiff(np.where(UNIT == 1, np.inf, UNIT).astype("<f4"), FLOAT), "floats from 0 to inf"),
    "int32-full": (tiff((RAMP * 8421504.0).astype("<i4"), SIGNED), "integers from 0 to 2.14748e+09; allowed are 0 to 65535"),
    "int32-negative": (tiff((RAMP - 128.0).astype("<i4"), SIGNED), "integers from -128 to 127; allowed are 0 to 65535"),
    "int32-eight": (tiff(RAMP.astype("<i4"), SIGNED), "from 0 to 255 may be of 8 or of 16 bits"),
    "int16": (tiff((RAMP * 128.0).astype("<i2"), SIGNED), "signed and of less than 32 bits"),
    "int8": (tiff((RAMP - 128.0).astype("i1"), SIGNED), "signed and of less than 32 bits"),
    "float16": (tiff(UNIT.astype("<f2"), FLOAT), "cannot identify image file"),
    "float64": (tiff(UNIT.astype("<f8"), FLOAT), "cannot identify image file"),
}  # fmt: skip


def test_all_depths_score_as_the_picture_in_8_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(RAMP).save(tmp_path / "eight.png")
    for name, raw in SAME.items():
        (tmp_path / name).write_bytes(raw)
    words = ["score", "--suite", "mini", "--device", "cpu", "--reward", "human", "--prompt", "fox face", "--csv"]
    assert cli.main([*words, *(str(tmp_path / name) for name in ("eight.png", *SAME))]) == 0
    scores = pd.read_csv(io.StringIO(capsys.readouterr().out))["human"]
    assert len(scores) == 1 + len(SAME) and np.allclose(scores, scores[0], rtol=1e-5, atol=0)
    for name in SAME:
        assert np.array_equal(np.asarray(read_picture(tmp_path / name))[..., 0], RAMP), name


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_black_and_white_must_be_known(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, message = REFUSED[name]
    (tmp_path / f"{name}.tif").write_bytes(raw)
    words = ["score", "--suite", "mini", "--device", "cpu", "--reward", "jpeg_compressibility"]
    assert cli.main([*words, str(tmp_path / f"{name}.tif")]) == 1
    err = capsys.readouterr().err
    assert message in err and f"{name}.tif" in err and err.count("\n") == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "PA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_white_is_white_in_every_mode(mode: str, tmp_path: Path) -> None:
    white = Image.new("RGBA", (4, 4), "white").convert("RGB" if mode in ("CMYK", "YCbCr") else "RGBA")
    (white.convert("LA").convert(mode) if mode == "PA" else white.convert(mode)).save(tmp_path / "a.tif")
    assert np.asarray(read_picture(tmp_path / "a.tif")).min() == 255


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif"])
def test_of_several_frames_the_first_counts(name: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(tmp_path / name, save_all=True, append_images=[second])
    assert read_picture(tmp_path / name).getpixel((0, 0)) == (255, 0, 0)


def test_no_picture_is_refused_for_being_black(tmp_path: Path) -> None:
    (tmp_path / "black.tif").write_bytes(tiff(np.zeros((4, 4), "<i4"), SIGNED))
    assert np.asarray(read_picture(tmp_path / "black.tif")).max() == 0
    with pytest.raises(UserError, match=r"absent\.tif"):
        read_picture(tmp_path / "absent.tif")
