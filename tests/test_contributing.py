"""The examples of CONTRIBUTING.md as a stranger uses them: one file, ``--plugin``, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from overopt_bench import cli
from overopt_bench.plugins import load_plugin
from overopt_bench.registry import get_suite

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE))
SMALL = ["--budget", "16", "--eval-points", "2", "--eval-images", "4", "--num-steps", "2", "--device", "cpu"]


def run(name: str, tmp_path: Path, **options: str) -> tuple[Path, list[dict[str, Any]]]:
    """Write the example's file, run it on mini or on its own suite, and return the run folder and its record."""
    (tmp_path / name).write_text(FILES[name])
    given = {"algo": "ddpo", "proxy": "aesthetic", "suite": "mini", **options}
    chosen = [text for key, value in given.items() for text in (f"--{key}", value)]
    plugin = ["--plugin", str(tmp_path / name), "--out", str(tmp_path / "results")]
    assert cli.main(["run", *chosen, *SMALL, *plugin]) == 0
    (folder,) = (tmp_path / "results").glob("*/*/*/seed0*")
    return folder, [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def last(rows: list[dict[str, Any]], event: str) -> dict[str, Any]:
    """The newest row of a kind."""
    return [row for row in rows if row["event"] == event][-1]


def test_the_map_counts_the_lines_of_every_example() -> None:
    counts = {name: int(lines) for name, lines in re.findall(r"^\| `(\w+\.py)`, .*? \| (\d+) \|$", TEXT, re.MULTILINE)}
    assert counts == {name: len(code.splitlines()) for name, code in FILES.items()}
    assert len(counts) == 6


def test_what_the_map_points_to_exists() -> None:
    for path in re.findall(r"`((?:overopt_bench|algorithms|rewards|tests)/[\w/.]*)`", TEXT):
        assert "NAME" in path or (ROOT / path).exists(), path
    headings = {
        re.sub(r"[^\w ]", "", line[4:]).lower().replace(" ", "-") for line in TEXT.splitlines() if line[:4] == "### "
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", TEXT)) == headings
    announced = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for group in re.findall(r"^\| \[.*\| `(overopt_bench\.\w+)` \|$", TEXT, re.MULTILINE):
        assert f'[project.entry-points."{group}"]' in announced, group


def test_the_algorithm_learns_and_resumes(tmp_path: Path, clean_registry: None) -> None:
    folder, rows = run("raft.py", tmp_path, algo="raft")
    assert last(rows, "train")["loss"] > 0 and last(rows, "eval")["queries"] == 16
    assert last(rows, "eval")["train/path_kl/mean"] > 0
    assert (folder / "adapter").is_dir()


def test_the_reward_is_a_proxy_with_a_gradient(tmp_path: Path, clean_registry: None) -> None:
    _, rows = run("sharpness.py", tmp_path, proxy="sharpness", algo="alignprop")
    assert last(rows, "eval")["train/sharpness/mean"] > 0 and last(rows, "eval")["train/path_kl/mean"] > 0


def test_the_mitigation_takes_what_is_above_the_ceiling(tmp_path: Path, clean_registry: None) -> None:
    _, rows = run("ceiling.py", tmp_path, mitigation="ceiling:at=-100")
    train = last(rows, "train")
    assert train["mitigation/ceiling/reward"] == pytest.approx(train["proxy/mean"] + 100, abs=1e-4)


def test_the_metric_is_recorded_and_reported(tmp_path: Path, clean_registry: None) -> None:
    _, rows = run("brightness.py", tmp_path)
    row = last(rows, "eval")
    assert 0 < row["train/brightness/mean"] < 1 and row["train/brightness/count"] == 4
    assert cli.main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "report")]) == 0
    assert "Mean brightness" in (tmp_path / "report/index.html").read_text(encoding="utf-8")


def test_the_suite_has_its_own_prompts_and_settings(tmp_path: Path, clean_registry: None) -> None:
    folder, rows = run("birds.py", tmp_path, suite="birds")
    assert folder.relative_to(tmp_path / "results").parts[0] == "birds"
    seen = next(row for row in rows if row["event"] == "scores" and row["split"] == "train")
    assert set(seen["prompts"]) <= {"dove", "duck", "flamingo", "goose", "owl", "peacock", "penguin", "swan"}
    config = json.loads((folder / "config.json").read_text())["config"]
    assert config["params"]["samples_per_epoch"] == 16
    suite = get_suite("birds")
    assert set(suite.prompts["train"]) <= set(get_suite("mini").names), "prompts that the base model knows"


def test_the_schedule_samples_and_is_exact_where_the_sde_is(tmp_path: Path, clean_registry: None) -> None:
    """Closed form: of data N(0, 1) the score is -x, and Euler's step contracts x by 1 - eta^2 beta / 2 exactly."""
    _, rows = run("reverse_sde.py", tmp_path, suite="mini_reverse_sde")
    assert last(rows, "eval")["train/path_kl/mean"] > 0
    load_plugin(tmp_path / "reverse_sde.py")
    suite = get_suite("mini_reverse_sde")
    schedule = suite.schedule(20, 0.5, "cpu")
    assert schedule is not None and len(schedule.timesteps) == 20
    x, steps = torch.randn(20, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20)
    noise_level = schedule.levels(schedule.timesteps)[1]
    step = schedule.transition(x, noise_level * x, steps)  # eps = -sqrt(1 - alpha) * score
    torch.testing.assert_close(step.mean, x * (1 - step.std**2 / 2))
    total = (step.std.flatten() ** 2).sum() / 0.25  # the integral of beta, whatever the steps
    alphas = suite.pipeline().scheduler.alphas_cumprod
    assert float(total) == pytest.approx(float((alphas[0] / alphas[-1]).log()), rel=1e-5)
