"""One form for prompts that people give: visible text, single spaces, Unicode's composed form (NFC), each once."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

from overopt_bench.errors import UserError

INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060"))  # joiners stay: emoji and some scripts are written with them
# what no prompt means: control characters, halves of surrogate pairs, the mark of text that was decoded wrongly
REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")


def tidy(prompts: Sequence[str], where: str) -> tuple[tuple[str, ...], str | None]:
    """Prompts in one form, without repetitions, in the order of their first appearance.

    White space of any kind becomes single spaces, invisible marks go, letters are composed. A repeated prompt would
    draw the same images twice, since noise depends on the prompt, and standard errors would count them twice.

    Args:
        prompts: as given.
        where: they come from, which opens the messages.

    Returns:
        The prompts, and one line that says how many were changed and dropped; None where none were.

    Raises:
        UserError: where they are no list of texts, or one is empty or holds a control character.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise UserError(f"{where}: must be a list of prompts, not {prompts!r}")
    kept: dict[str, None] = {}
    changed = 0
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise UserError(f"{where}: prompt {number} is {prompt!r}, which is no text; put it in quotes")
        text = _in_one_form(prompt)
        if not text:
            raise UserError(f"{where}: prompt {number} is empty; leave it out")
        if found := REFUSED.search(text):
            raise UserError(
                f"{where}: prompt {number}, {text!r}, holds U+{ord(found[0]):04X}, which is no text; mend it"
            )
        changed += text != prompt
        kept[text] = None
    notes = []
    if changed:
        notes.append(f"white space or Unicode forms of {changed} made uniform")
    if len(kept) < len(prompts):
        notes.append(f"{len(prompts) - len(kept)} repeated dropped")
    return tuple(kept), f"{where}: of {len(prompts)} prompts, {', '.join(notes)}; {len(kept)} remain" if notes else None


def _in_one_form(prompt: str) -> str:
    if prompt.isascii():
        return " ".join(prompt.split())
    return " ".join(unicodedata.normalize("NFC", prompt.translate(INVISIBLE)).split())


def overlap(prompts: Iterable[str], others: Iterable[str]) -> list[str]:
    """Which of ``others`` are among ``prompts``, whatever their case and form."""
    known = {_in_one_form(prompt).casefold() for prompt in prompts}
    return [other for other in others if _in_one_form(other).casefold() in known]
