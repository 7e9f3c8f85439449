"""Fixtures for tests that need a world of their own, and what several processes of pytest share.

``pytest-xdist`` starts one worker a core. Each has one thread: networks this small gain nothing from more, and threads
that wait for each other's cores make everything several times slower.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from fake_train import FakeTrain
from sharing import Once, made_once

import overopt_bench.training
from overopt_bench import plugins, registry

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell without job control starts what stands in the background so, and the tests' own processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
TINY = Path(__file__).parent / "plugins" / "tiny.py"


def pytest_xdist_setupnodes() -> None:
    """Give one thread to every worker, and to every process that its tests start; before any of them imports torch."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the workers have: the numbers of two processes agree to the bit only with equally many threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is forgotten afterwards."""
    for one in (registry.algorithms, registry.mitigations, registry.rewards, registry.suites, registry.metrics):
        monkeypatch.setattr(one, "_classes", one.classes())
    monkeypatch.setattr(registry.rewards, "_kinds", registry.rewards.kinds())
    monkeypatch.setattr(plugins, "_loaded", {})
    yield


@pytest.fixture
def tiny(clean_registry: None) -> Path:
    """Load the plugin with the suite ``tiny``; gives the path of its file."""
    plugins.load_plugin(TINY)
    return TINY


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Once:
    """What is made a single time for all workers: a folder of a name, filled by a function, that must not be written to."""
    base = tmp_path_factory.getbasetemp()
    return partial(made_once, base if worker_id == "master" else base.parent)  # master: pytest itself, without workers


@pytest.fixture(scope="session")
def tiny_weights(once: Once) -> Path:
    """A folder for ``--weights``: small random checkpoints in the published formats, under the published names."""
    from tiny_checkpoints import make_tiny_checkpoints

    return once("tiny_weights", make_tiny_checkpoints)


@pytest.fixture
def train(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTrain:
    """Training that only notes what it is given, in an empty working directory."""
    fake = FakeTrain()
    monkeypatch.setitem(sys.modules, "overopt_bench.training.loop", fake)
    monkeypatch.setattr(overopt_bench.training, "loop", fake, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVEROPT_BENCH_DEBUG", raising=False)
    return fake
