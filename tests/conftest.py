"""Fixtures for tests that need a world of their own: a tiny suite, rewards and an algorithm, from a plugin file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from overopt_bench import plugins, registry

TINY = Path(__file__).parent / "plugins" / "tiny.py"


@pytest.fixture
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test registers is forgotten afterwards."""
    for one in (registry.algorithms, registry.rewards, registry.suites):
        monkeypatch.setattr(one, "_classes", one.classes())
    monkeypatch.setattr(plugins, "_loaded", {})
    yield


@pytest.fixture
def tiny(clean_registry: None) -> Path:
    """Load the plugin with the suite ``tiny``; gives the path of its file."""
    plugins.load_plugin(TINY)
    return TINY


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``--weights``: small random checkpoints in the published formats, under the published names."""
    from tiny_checkpoints import make_tiny_checkpoints

    return make_tiny_checkpoints(tmp_path_factory.mktemp("weights"))
