"""``--plugin FILE``: algorithms, mitigations, rewards, suites and metrics from a single Python file outside any package."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overopt_bench.errors import UserError
from overopt_bench.registry import Registry, algorithms, get_reward, is_foreign, metrics, mitigations, rewards, suites
from overopt_bench.types import Reward, Suite


@dataclass(frozen=True)
class Plugin:
    """A loaded file; ``path`` is absolute, ``sha256`` that of its content, ``names`` what it registered."""

    path: Path
    sha256: str
    names: tuple[str, ...]


_loaded: dict[tuple[Path, str], Plugin] = {}


def _registered() -> set[tuple[str, str | None, str]]:
    registries: tuple[Registry[Any], ...] = (algorithms, mitigations, rewards, suites, metrics)
    kinds = {(rewards.kind, None, f"{kind}:") for kind in rewards.kinds()}
    return kinds | {(r.kind, suite, name) for r in registries for suite, name in r.classes()}


def load_plugins(paths: Iterable[str | Path] | None) -> tuple[Plugin, ...]:
    """Import each file, in order; see ``load_plugin``."""
    return tuple(load_plugin(path) for path in paths or ())


def load_plugin(path: str | Path) -> Plugin:
    """Import a file by its path, once per content.

    Raises:
        UserError: where it is missing, does not import, or registers nothing.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--plugin {path}: no such Python file")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if (file, digest) in _loaded:
        return _loaded[file, digest]
    before = _registered()
    name = f"overopt_bench_plugin_{digest[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pydantic and dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(
            f"--plugin {path} does not import: {_where(error, file)}{type(error).__name__}: {error}"
        ) from error
    names = tuple(sorted(f"{kind} {name}" for kind, _, name in _registered() - before))
    if not names:
        raise UserError(
            f"--plugin {path} registers nothing: decorate a class with @register_reward, @register_algorithm,"
            " @register_mitigation, @register_metric or @register_suite from overopt_bench.registry"
        )
    plugin = _loaded[file, digest] = Plugin(file, digest, names)
    return plugin


def _where(error: BaseException, file: Path) -> str:
    """Give ``file:line: `` of the innermost frame inside the plugin, or nothing where the traceback has none."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{file.name}:{error.lineno}: "
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    return f"{file.name}:{lines[-1]}: " if lines else ""


def probe_foreign_rewards(names: Iterable[str], suite: Suite, prompts: Sequence[str]) -> None:
    """Try each reward that is not part of this package on two random images with these prompts, before a run writes.

    Raises:
        UserError: where one fails, or gives a wrong shape, NaN, or no gradient although it claims one.
    """
    for name in dict.fromkeys(names):
        if is_foreign(rewards.get(name, suite.family())):
            probe_reward(get_reward(name, suite), suite, prompts)


def probe_reward(reward: Reward, suite: Suite, prompts: Sequence[str]) -> None:
    """Try one reward as ``probe_foreign_rewards`` does, on images of the size that the suite's pipeline draws.

    Raises:
        UserError: as there.
    """
    import torch

    size = suite.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    prompts = [*prompts[:2], *prompts[:1]][:2]
    try:
        if reward.needs_base_samples:
            reward.load_calibration(reward.calibrate(images, prompts))
        scores = reward(images.requires_grad_(reward.differentiable), prompts)
    except Exception as error:  # a stranger's code may raise anything
        raise UserError(
            f"reward {reward.name!r} failed on two random images: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(scores, torch.Tensor) or tuple(scores.shape) != (2,):
        got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
        raise UserError(f"reward {reward.name!r} must give a tensor of shape (2,) for two images; it gave {got}")
    if not scores.is_floating_point() or not bool(torch.isfinite(scores).all()):
        raise UserError(f"reward {reward.name!r} must give finite floats; it gave {scores.tolist()} of {scores.dtype}")
    if reward.differentiable and not scores.requires_grad:
        raise UserError(f"reward {reward.name!r} says differentiable = True but its scores carry no gradient")
