"""The committed page of the instrument is what the committed records say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

INSTRUMENT = Path(__file__).parent.parent / "results" / "instrument"


@pytest.mark.slow
def test_the_instruments_page_follows_from_the_records() -> None:
    """Whoever changes the statistics, or a record, sees what becomes of comparisons whose answer is known."""
    check = [sys.executable, str(INSTRUMENT / "check.py")]
    made = subprocess.run(check, capture_output=True, text=True, check=False, cwd=INSTRUMENT.parents[1])
    assert made.returncode == 0, made.stderr
    assert made.stdout == (INSTRUMENT / "README.md").read_text(encoding="utf-8")
