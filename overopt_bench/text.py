"""Text files from anywhere, read as UTF-8 or called by what they are; and text in cells of tables that spreadsheets open."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from overopt_bench.errors import UserError
from overopt_bench.shell import command_line

MARKS = {  # UTF-32 first: its little-endian mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip
BINARY = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip (or an office document)", b"PAR1": "Parquet", b"BZh": "bzip2",
    b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"%PDF": "PDF", b"SQLite format 3": "SQLite",
}  # fmt: skip


def read_value(text: str) -> Any:
    """Return the value that a user wrote after ``=``: JSON where it parses, else the text itself without outer spaces."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()


def read_text(path: Path, option: str) -> str:
    """The text of a UTF-8 file without its byte order mark; line ends are as in the file.

    Args:
        path: of the file.
        option: that named the file, for messages.

    Raises:
        UserError: where the file cannot be read, or is no UTF-8: says what it seems to be and how to convert it.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    if kind := next((name for magic, name in BINARY.items() if raw.startswith(magic)), None):
        raise UserError(f"{option} {path}: the file is {kind}, not text; unpack or export it as UTF-8 text first")
    encoding = next((name for mark, name in MARKS.items() if raw.startswith(mark)), None) or _wide(raw)
    try:
        if encoding is None:
            return raw.decode("utf-8-sig")
        where = "the file"
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        if error.reason == "unexpected end of data":
            raise UserError(
                f"{option} {path}: the file ends within a character (line {line}); it was cut off"
            ) from None
        encoding, where = _narrow(raw), f"byte 0x{raw[error.start]:02x} in line {line}"
    if encoding is None:
        raise UserError(f"{option} {path}: {where} is not UTF-8, and its encoding is not known; save it as UTF-8")
    command = command_line(["iconv", "-f", encoding, "-t", "UTF-8", "--", str(path)])
    raise UserError(
        f"{option} {path}: {where} is not UTF-8 but seems to be {encoding}; convert it: {command} > utf8.txt"
    )


def _wide(raw: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark, from where its zero bytes stand: Latin letters have one in two, or three in four."""
    zeros = [raw[k::4].count(0) > len(raw) / 8 for k in range(4)]
    names = {
        (False, True, True, True): "UTF-32LE", (True, True, True, False): "UTF-32BE",
        (False, True, False, True): "UTF-16LE", (True, False, True, False): "UTF-16BE",
    }  # fmt: skip
    return names.get((zeros[0], zeros[1], zeros[2], zeros[3]))


def _narrow(raw: bytes) -> str | None:
    """The likeliest encoding of one byte a character, where there is one: bytes 0x80 to 0x9f are no letters in Latin-1."""
    if not any(0x80 <= byte <= 0x9F for byte in raw):
        return "ISO-8859-1"
    try:
        raw.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "WINDOWS-1252"


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula: OWASP's advice is an apostrophe before what could begin one."""
    formula = text.startswith("\t") or text.lstrip().startswith(("=", "+", "-", "@"))
    return f"'{text}" if formula else text
