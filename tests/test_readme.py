"""The files that the README shows are whole and work, and its commands are those that ``.ci/run`` executes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import write_run
from launching import SMALLEST

from overopt_bench.config import resolve
from overopt_bench.plugins import load_plugin
from overopt_bench.report import build_report
from overopt_bench.training import loop as train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
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


def script(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ROOT / ".ci" / words[0], *words[1:]], capture_output=True, text=True)


def test_ci_runs_the_commands_that_the_readme_shows() -> None:
    block, tests = (script("readme.py", name).stdout for name in ("first-block", "tests"))
    assert block == README.split("```bash\n", 1)[1].split("```", 1)[0]
    assert f"Tests: `{tests.strip()}`" in README and tests.strip().endswith("python -m pytest")
    run = (ROOT / ".ci" / "run").read_text()
    for name in ("first-block", "tests"):
        assert re.search(rf'python \.ci/readme\.py {name} >"(\S+)"\n *bash -eux "\1"', run), name
    shown = {command.partition("#")[0].strip() for command in (block + tests).splitlines()}
    assert not shown & {line.strip() for line in run.splitlines()}  # no second copy, which could differ


def test_ci_sees_what_is_missing_from_the_page(tmp_path: Path) -> None:
    """The README's gold, in a made-up run; then a page of another run, and one that does not show that gold."""
    golds = ["imagereward", "human"]
    run = write_run(tmp_path / "results", "tdpo_r", gold=golds, others={"imagereward": (0.0, 0.1, 0.2, 0.1, 0.05)})
    page = build_report([tmp_path / "results"], tmp_path / "report")
    done = script("first_minute.py", run, page)
    assert (done.returncode, done.stderr) == (0, "")

    other = run.rename(run.with_name("seed1"))
    assert f"no row says that the run {other} is complete" in script("first_minute.py", other, page).stderr
    page.write_text(page.read_text().replace("imagereward", "gold"))
    done = script("first_minute.py", other, page)
    assert done.returncode == 1 and "no row has the asked gold imagereward" in done.stderr
    assert "no sentence says that the asked gold imagereward went from" in done.stderr


@pytest.mark.parametrize(
    ("name", "algo", "proxy"), [("rwr.py", "rwr", "aesthetic"), ("redness.py", "alignprop", "redness")]
)
def test_shown_plugins_run(name: str, algo: str, proxy: str, tmp_path: Path, clean_registry: None) -> None:
    file = tmp_path / name
    file.write_text(FILES[name])
    plugin = load_plugin(file)
    config = resolve({"algo": algo, "proxy": proxy, **SMALLEST})
    folder = train.run(config, out=tmp_path / "results", plugins=(plugin,))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    ends = [r for r in rows if r["event"] == "eval"]
    assert ends[-1]["queries"] == 32 and ends[-1]["train/path_kl/mean"] > 0
