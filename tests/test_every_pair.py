"""Every registered algorithm with every reward that it supports: a new entry is tested on the day it is added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from overopt_bench.config import resolve
from overopt_bench.errors import UserError
from overopt_bench.registry import algorithms, rewards
from overopt_bench.training import loop as train

PAIRS = [(a, r) for a in algorithms.names() for r in rewards.names("mini") if r != "human"]


@pytest.mark.parametrize(("algo", "proxy"), PAIRS)
def test_runs_to_the_end_of_its_budget(algo: str, proxy: str, tmp_path: Path) -> None:
    given = {
        "algo": algo,
        "proxy": proxy,
        "suite": "mini",
        "budget": 32,
        "eval_points": 2,
        "eval_images": 4,
        "num_steps": 3,
    }
    if algorithms.get(algo).needs_gradient and not rewards.get(proxy, "mini").differentiable:
        with pytest.raises(UserError, match="differentiable"):
            resolve(given)
        return
    folder = train.run(resolve(given), out=tmp_path)
    assert json.loads((folder / "status.json").read_text())["state"] == "complete"
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [e for e in events if e["event"] == "eval"]
    assert evals[0]["queries"] == 0 and evals[0]["train/path_kl/mean"] == 0
    assert evals[-1]["queries"] == 32 and {"train/human/mean", f"train/{proxy}/mean"} <= evals[-1].keys()
    if algorithms.get(algo).role == "trains":
        assert evals[-1]["train/path_kl/mean"] > 0 and [e for e in events if e["event"] == "train"]
