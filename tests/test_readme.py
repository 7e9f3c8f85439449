"""The files that the README shows are whole and work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from overopt_bench import train
from overopt_bench.config import resolve
from overopt_bench.plugins import load_plugin

README = (Path(__file__).parent.parent / "README.md").read_text()
FILES = {name: code for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", README, re.DOTALL)}


def test_first_screen_has_the_two_lines_and_the_tests() -> None:
    screen = README[: README.index("![")]
    for line in (
        "pip install -e .",
        "overopt-bench run --algo tdpo_r --proxy aesthetic --gold imagereward",
        "overopt-bench report",
        "pytest",
    ):
        assert line in screen


@pytest.mark.parametrize(
    ("name", "algo", "proxy"), [("rwr.py", "rwr", "aesthetic"), ("redness.py", "alignprop", "redness")]
)
def test_shown_plugins_run(name: str, algo: str, proxy: str, tmp_path: Path, clean_registry: None) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    plugin = load_plugin(file)
    config = resolve(
        {
            "algo": algo,
            "proxy": proxy,
            "suite": "mini",
            "budget": 32,
            "eval_points": 2,
            "eval_images": 4,
            "num_steps": 3,
        }
    )
    folder = train.run(config, out=tmp_path / "results", plugins=(plugin,))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ends = [r for r in rows if r["event"] == "eval"]
    assert ends[-1]["queries"] == 32 and ends[-1]["train/path_kl/mean"] > 0
