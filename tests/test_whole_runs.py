"""Every registered algorithm and every reward in whole runs: a new entry is tested on the day it is added.

An algorithm asks of a reward its scores, its gradient and its features, and some rewards have scores alone. So each
algorithm meets a reward that has all three and one that has only scores, and each reward meets algorithms that use each.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import SMALLEST

from overopt_bench.config import resolve
from overopt_bench.errors import UserError
from overopt_bench.registry import algorithms, rewards
from overopt_bench.training import loop as train

REWARDS = [name for name in rewards.names("mini") if name != "human"]
PAIRS = {(algo, proxy) for algo in algorithms.names() for proxy in ("imagereward", "jpeg_compressibility")} | {
    (algo, proxy) for algo in ("tdpo", "alignprop") for proxy in REWARDS
}


@pytest.mark.parametrize(("algo", "proxy"), sorted(PAIRS))
def test_runs_to_the_end_of_its_budget(algo: str, proxy: str, tmp_path: Path) -> None:
    given = {"algo": algo, "proxy": proxy, **SMALLEST}
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
