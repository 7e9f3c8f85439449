"""Commands that are printed for people to paste: a shell gets back the words, whatever is in them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable


def command_line(words: Iterable[str]) -> str:
    """Words as one line for bash, zsh or ksh.

    A word whose characters are all visible and known to the terminal is quoted as usual. Any other (line ends, two
    spaces in a row, which error messages fold, file names that are no text, an emoji on an ASCII terminal) is written
    byte by byte as ``$'...'``, which is ASCII.
    """
    return " ".join(shlex.quote(word) if _can_be_shown(word) else _escaped(word) for word in words)


def _can_be_shown(word: str) -> bool:
    """Whether a word survives the terminal's encoding and the folding of white space in messages."""
    try:
        word.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return word.isprintable() and "  " not in word


def _escaped(word: str) -> str:
    """ANSI-C quoting: visible ASCII as it is, every other byte in octal, whose three digits run into nothing."""
    plain = set(range(0x21, 0x7F)) - set(b"'\\")
    return "$'" + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in os.fsencode(word)) + "'"
