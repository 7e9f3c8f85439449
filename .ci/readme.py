"""Prints the commands of the README word for word, so that what is checked is what a reader types.

``python .ci/readme.py first-block`` prints the first block of commands, ``python .ci/readme.py tests`` the command that
runs the tests.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
PATTERNS = {
    "first-block": re.compile(r"^```bash\n(.*?)^```$", re.DOTALL | re.MULTILINE),
    "tests": re.compile(r"^Tests: `([^`\n]+)`$", re.MULTILINE),
}


def commands(name: str, text: str) -> str:
    """Finds the commands of one kind in a README.

    Args:
        name: A key of ``PATTERNS``.
        text: The README's Markdown.

    Returns:
        What stands between the marks, unchanged.

    Raises:
        LookupError: The text has no such commands.
    """
    found = PATTERNS[name].search(text)
    if found is None:
        raise LookupError(f"the README has nothing of the form {PATTERNS[name].pattern!r}")
    return found[1]


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PATTERNS:
        sys.exit(f"usage: python .ci/readme.py {'|'.join(PATTERNS)}")
    try:
        print(commands(sys.argv[1], README.read_text(encoding="utf-8")).removesuffix("\n"))
    except LookupError as error:
        sys.exit(f"error: {error}")
