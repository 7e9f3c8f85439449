"""Compiled code is kept where the next process finds it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from overopt_bench.compute import compiling

# sampling and training, as a run has them: torch keeps a pass with a graph once its backward pass is compiled too.
# What is imported first writes torch's own folder into the environment, as diffusers and peft do.
SCRIPT = """
import os
import torch
from torch._dynamo.utils import counters
from overopt_bench.compute import compiling

written = os.environ.get(compiling.PLACE)
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))
fast, x = compiling.compiled(network), torch.randn(2, 4)
with torch.no_grad():
    sampled = fast(x)
trained = fast(x)
trained.sum().backward()
torch.testing.assert_close(sampled, network(x))
torch.testing.assert_close(trained, network(x))
print(written != os.environ[compiling.PLACE], os.environ[compiling.PLACE])
print(counters["inductor"]["fxgraph_cache_miss"], counters["aot_autograd"]["autograd_cache_miss"])
"""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch was asked to compile; nothing is."""
    seen: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda module: seen.append(module) or module)
    monkeypatch.setenv(compiling.PLACE, "")  # so that whatever is put there is taken back
    monkeypatch.delenv(compiling.PLACE)
    return seen


def test_code_is_kept_among_the_users_caches(asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module = torch.nn.Linear(2, 2)
    assert compiling.compiled(module) is module and asked == [module]
    folder = tmp_path / "overopt-bench" / "compiled"
    assert os.environ[compiling.PLACE] == str(folder) and folder.is_dir()


def test_a_place_that_the_user_names_stands(asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compiling.PLACE, "/elsewhere")
    compiling.compiled(torch.nn.Linear(2, 2))
    assert os.environ[compiling.PLACE] == "/elsewhere" and not any(tmp_path.iterdir())


def test_torchs_own_place_among_temporary_files_is_nobodys(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.codecache import cache_dir

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = cache_dir()  # writes it there
    assert os.environ[compiling.PLACE] == own
    compiling.compiled(torch.nn.Linear(2, 2))
    assert os.environ[compiling.PLACE] == str(tmp_path / "overopt-bench" / "compiled")


def test_a_home_that_cannot_be_written_leaves_torchs_place(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiling.compiled(torch.nn.Linear(2, 2))
    assert len(asked) == 1 and compiling.PLACE not in os.environ


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_compiled_numbers_are_as_near_the_exact_ones_as_plain_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float64 is the yardstick: other orders of the same sums round otherwise, and as much.

    The errors of two float32 computations are of one size, and their norms over hundreds of numbers hardly differ; a
    wrong term, or half precision (8,000 times as coarse), is far outside of three times the plain error.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiling.PLACE, raising=False)
    monkeypatch.setattr("torch._inductor.config.compile_threads", 1)  # more are processes that import torch first
    torch.manual_seed(0)
    conv = functools.partial(torch.nn.Conv2d, kernel_size=3, padding=1)
    network = torch.nn.Sequential(conv(4, 32), torch.nn.GroupNorm(8, 32), torch.nn.SiLU(), conv(32, 4))
    x = torch.randn(3, 4, 8, 8)

    def ask(call: Any, dtype: torch.dtype) -> list[torch.Tensor]:
        out = call(x.to(dtype))
        gradients = torch.autograd.grad(out.square().mean(), list(network.parameters()))
        return [out.detach().double(), torch.cat([g.flatten() for g in gradients]).double()]

    plain = ask(network, torch.float32)
    fast = ask(compiling.compiled(network), torch.float32)
    exact = ask(network.double(), torch.float64)
    for true, one, other in zip(exact, plain, fast, strict=True):
        error = (one - true).norm()
        assert 0 < error < 1e-5 * true.norm()
        assert (other - true).norm() < 3 * error


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++")
def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != compiling.PLACE}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    misses = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        )
        moved, place, graphs, autograd = done.stdout.split()
        assert moved == "True" and Path(place) == tmp_path / "overopt-bench" / "compiled"
        misses.append((int(graphs), int(autograd)))
    assert misses[0][0] > 0 and misses[1] == (0, 0)
