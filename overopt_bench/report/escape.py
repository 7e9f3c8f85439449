"""Text from a record, made literal in every format that the report writes.

A record may come from a stranger, and even one's own prompts hold whatever people type. HTML is escaped by the
template's autoescape; the functions here do it for CSV, Markdown, LaTeX and file names.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "±": r"$\pm$", "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
LONGEST_NAME = 100  # characters; file systems take 255 bytes


@lru_cache(maxsize=4096)  # a table has few words, many times
def markdown_text(text: str) -> str:
    """Text as a Markdown table shows it literally: one line, no cell border, no markup, no HTML."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|~$!])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # an underscore within a word is no markup


@lru_cache(maxsize=4096)
def latex_text(text: str) -> str:
    """Text as LaTeX sets it literally; brackets and stars are grouped, since a row's end takes them for its options."""
    return "".join(LATEX.get(character, character) for character in " ".join(text.split()))


def file_name(text: str) -> str:
    """A file name made of the text, inside its folder on every system; a digest tells apart what became equal."""
    name = re.sub(r"[^\w.+-]+", "-", text.replace(":", "-")).lstrip(".-")[:LONGEST_NAME]
    if name and name == text.replace(":", "-"):
        return name
    return f"{name}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}".lstrip("-")
