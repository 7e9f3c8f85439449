"""The bare passes are those that an algorithm makes: as many latents through the U-Net in as many passes, as many images."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from overopt_bench.commands import bench as module
from overopt_bench.commands.command import Arguments
from overopt_bench.commands.settings import read_options
from overopt_bench.compute.processes import World
from overopt_bench.compute.runtime import Runtime
from overopt_bench.config import resolve
from overopt_bench.plugins import load_plugin
from overopt_bench.registry import algorithms, get_reward, get_suite
from overopt_bench.training.build import Assembly, assemble

PARAMS: dict[str, dict[str, Any]] = {
    "ddpo": {"samples_per_epoch": 6, "images_per_prompt": 1},
    "alignprop": {"batch_size": 6, "truncation": "fixed", "grad_steps": 2},
    "tdpo": {"samples_per_epoch": 6, "images_per_prompt": 1, "batch_size": 4},
    "tdpo_r": {"samples_per_epoch": 6, "images_per_prompt": 1, "batch_size": 4, "reset_period": 1},
    "grpo": {"samples_per_epoch": 6, "images_per_prompt": 3, "ratio": "guard", "updates_per_epoch": 2},
    "nft": {"samples_per_epoch": 6, "images_per_prompt": 3, "updates_per_epoch": 2},
}


def counted(parts: Assembly, work: Any) -> Counter[str]:
    """Latents and passes through the U-Net and the decoder while ``work`` ran, with and without a graph."""
    seen: Counter[str] = Counter()

    def count(name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            kind = f"{name}{' with a graph' if torch.is_grad_enabled() else ''}"
            seen.update({kind: len(args[0]), f"passes of the {kind}": 1})

        return hook

    policy = parts.policy
    hooks = [
        policy.unet.register_forward_pre_hook(count("unet")),
        policy.vae.decoder.register_forward_pre_hook(count("decoder")),
    ]
    work()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("suite", ["mini", "sd14"])
@pytest.mark.parametrize("algo", PARAMS)
def test_bare_passes_are_those_of_the_algorithm(algo: str, suite: str, tiny_weights: Path) -> None:
    world = get_suite(suite, tiny_weights if suite == "sd14" else None)
    proxy = get_reward("aesthetic", world)
    given = {
        "algo": algo,
        "proxy": "aesthetic",
        "suite": suite,
        "num_steps": 3,
        "params": PARAMS[algo],
        "precision": "float32",
    }
    parts = assemble(resolve(given), world, {"aesthetic": proxy}, Runtime(micro_batch=4), World())
    metrics: dict[str, float] = {}
    own = counted(parts, lambda: metrics.update(parts.algorithm.step()))
    bare = module.bare_passes(parts, proxy, 6, int(metrics["optimizer_steps"]))
    assert own == counted(parts, bare) and own["unet with a graph"] > 0
    assert all(p.grad is None for p in parts.policy.trainable())  # or the next round would step along them


@pytest.fixture
def rwr(tmp_path: Path, clean_registry: None) -> Path:
    """The README's own algorithm, in a file."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (code,) = re.findall(r"```python\n# rwr\.py\n(.*?)```", readme, re.DOTALL)
    file = tmp_path / "rwr.py"
    file.write_text(code)
    load_plugin(file)
    return file


def test_an_algorithm_from_outside_has_bare_passes_too(rwr: Path) -> None:
    suite = get_suite("mini")
    proxy = get_reward("aesthetic", suite)
    config = resolve({"algo": "rwr", "proxy": "aesthetic", "suite": "mini", "num_steps": 3, "params": {"samples": 6}})
    parts = assemble(config, suite, {"aesthetic": proxy}, Runtime(micro_batch=6), World())  # it takes its batch whole
    assert counted(parts, parts.algorithm.step) == counted(parts, module.bare_passes(parts, proxy, 6, 1))


@pytest.mark.slow
def test_the_table_has_a_row_for_each(
    rwr: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "ROUNDS", 1)
    trained = [name for name in algorithms.names() if algorithms.get(name).role == "trains"]
    small = {"samples_per_epoch": 8, "images_per_prompt": 4, "batch_size": 8, "samples": 8}
    pairs = [f"{a}.{k}={v}" for a in trained for k, v in small.items() if k in algorithms.get(a).Params.model_fields]
    given = {"suite": "mini", "device": "cpu", "num_steps": 4, "eval_images": 8, "set": pairs}
    result = module.bench(read_options(Arguments(given)))
    assert [*result["rows"]] == trained and {"ddpo", "rwr"} <= {*trained}
    for row in result["rows"].values():
        assert row["ratio"] == pytest.approx(row["seconds_per_query"] / row["bare"])
        assert 0 < row["evaluation_share"] < 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2 : 2 + len(trained)]] == trained
    assert "GPU memory" not in lines[0]
