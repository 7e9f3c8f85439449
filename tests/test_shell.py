"""What is printed to be pasted can be pasted: through real shells, whatever is in it and whatever the terminal knows."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from overopt_bench import cli
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.errors import UserError
from overopt_bench.plugins import Plugin
from overopt_bench.recording.provenance import resume_command
from overopt_bench.shell import command_line
from overopt_bench.weights import Repo

ODD = {
    "spaces": "my  results of today",
    "quotes": 'it\'s "mine"',
    "emoji": "🦊 fox",
    "accents": "résultats/狐",
    "line ends": "two\nlines\tand\r",
    "dash": "-x",
    "expansions": "$HOME `id` $(id) !! * ~ # \\n \\",
    "undecodable": os.fsdecode(b"caf\xe9"),
    "escape": "\x1b[31m7",
    "nothing": "",
    "no-break": "a\u00a0b\u2028c",
}
SHELLS = [shell for shell in ("bash", "zsh", "ksh") if shutil.which(shell)]


def words_of(line: str, shell: str) -> list[str]:
    """The words that a shell makes of a line, which it gets in a script, in UTF-8."""
    script = f'overopt-bench() {{ printf "%s\\0" "$@"; }}; {line}'.replace("overopt-bench", "show")
    done = subprocess.run([shell, "-c", os.fsencode(script)], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ODD)
def test_a_shell_gets_the_words_back(name: str, shell: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    line = command_line(["show", ODD[name], "--last"])
    monkeypatch.undo()
    assert line.encode(encoding)  # the terminal can show it
    assert str(UserError(line)) == line  # and messages fold nothing in it
    assert words_of(line, shell) == [ODD[name], "--last"]


def test_ordinary_words_are_left_alone() -> None:
    assert command_line(["a", "b/c.json", "two words", "狐"]) == "a b/c.json 'two words' '狐'"


def test_output_that_the_terminal_cannot_show_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, "ascii", write_through=True))
    Image.new("RGB", (8, 8)).save(tmp_path / "🦊.png")
    words = ["score", "--suite", "mini", "--device", "cpu", "--reward", "jpeg_compressibility"]
    assert cli.main([*words, str(tmp_path / "🦊.png")]) == 0
    assert rb"\U0001f98a.png" in terminal.getvalue()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", sorted(set(ODD) - {"nothing"}))
def test_commands_that_are_printed(name: str) -> None:
    odd = ODD[name]
    config = resolve({"algo": "climb", "proxy": "darkness", "suite": "tiny", "train_prompts": ["🦊"]})
    line = resume_command(
        config, Path(odd), Runtime(device="cpu", weights=Path(odd)), [Plugin(Path("/p", odd), "", ())]
    )
    record = str(Path(odd) / "tiny/darkness/climb/seed0/config.json")
    assert words_of(line, "bash") == [
        "run", "--config", record, "--out", odd, "--device", "cpu", "--weights", odd, "--plugin", str(Path("/p", odd)),
    ]  # fmt: skip
    fetch = Repo("org/name", "main", "", {"a.bin": 1}).command(Path(odd)).replace("hf", "show", 1)
    assert words_of(fetch, "bash")[-1] == str(Path(odd) / "name")


@pytest.mark.slow
@pytest.mark.parametrize(
    "locale",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "ascii"},
    ],
    ids=["c", "ascii-output"],
)
def test_an_interrupted_run_goes_on_by_the_line_that_it_printed(locale: dict[str, str], tmp_path: Path) -> None:
    """Prompts and folder with an emoji, quotes and spaces; the command is run by bash, as it stands."""
    (tmp_path / "p.txt").write_text("fox face 🦊\ncat face\n", encoding="utf-8")
    program = tmp_path / "overopt-bench"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m overopt_bench "$@"\n')
    program.chmod(0o755)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{tmp_path}:{os.environ['PATH']}", **locale}
    out = os.fsencode(tmp_path / "🦊's  folder")
    words = [
        "run", "--algo", "ddpo", "--proxy", "aesthetic", "--suite", "mini", "--device", "cpu", "--prompts",
        str(tmp_path / "p.txt"), "--budget", "96", "--eval-points", "2", "--eval-images", "4", "--num-steps", "2",
        "--set", "samples_per_epoch=16", "--out",
    ]  # fmt: skip
    folder = Path(os.fsdecode(out), "mini/aesthetic/ddpo/seed0")
    with subprocess.Popen([str(program), *words, out], stdout=subprocess.PIPE, env=environment) as run:
        deadline = time.monotonic() + 600
        while not (folder / "metrics.jsonl").exists() or b'"train"' not in (folder / "metrics.jsonl").read_bytes():
            assert time.monotonic() < deadline and run.poll() is None
            time.sleep(0.02)
        run.send_signal(signal.SIGINT)
        assert run.stdout is not None
        printed = run.stdout.read()
        assert run.wait() == 75, printed
    line = printed.strip().splitlines()[-1].strip()
    assert line.startswith(b"overopt-bench run --config")
    assert json.loads((folder / "status.json").read_bytes())["state"] == "interrupted"
    subprocess.run(["bash", "-c", line], env=environment, check=True, timeout=600)
    assert json.loads((folder / "status.json").read_bytes())["state"] == "complete"
    assert json.loads((folder / "config.json").read_bytes())["config"]["train_prompts"] == ["fox face 🦊", "cat face"]
