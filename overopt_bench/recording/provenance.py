"""Where a run's numbers come from: versions, hardware, code revision, weights; and how to go on with it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from PIL import features

from overopt_bench.compute.runtime import Machine, Runtime
from overopt_bench.config import RunConfig
from overopt_bench.lazy import torch
from overopt_bench.options import arguments
from overopt_bench.plugins import Plugin
from overopt_bench.registry import is_foreign, metrics
from overopt_bench.shell import command_line
from overopt_bench.types import Reward, Suite

PACKAGES = (
    "overopt-bench", "torch", "diffusers", "transformers", "peft", "accelerate", "open_clip_torch", "numpy", "pillow"
)  # fmt: skip


def versions() -> dict[str, str]:
    """Look up the versions of Python and of the packages that determine numbers, by name."""
    known = {"python": platform.python_version(), "libjpeg_turbo": features.version("libjpeg_turbo") or "none"}
    for name in PACKAGES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            known[name] = "not installed"
    return known


def hardware(device: str) -> dict[str, Any]:
    """Describe the machine, as far as it matters for speed and rounding.

    Args:
        device: cpu, cuda or cuda:N, where networks are run.
    """
    facts: dict[str, Any] = {
        "device": device,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def git_revision() -> str | None:
    """Look up the checkout's commit, with "+changes" where it is not clean; None away from a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def provenance(
    config: RunConfig,
    suite: Suite,
    rewards: Mapping[str, Reward],
    own_encoder: bool,
    plugins: Sequence[Plugin],
    runtime: Runtime,
    processes: int,
) -> dict[str, Any]:
    """Collect where one session's numbers come from: its line in ``sessions.jsonl``.

    Args:
        config: the configuration of the run.
        suite: hashes the weights of its base model.
        rewards: all that the run evaluates, loaded, by name.
        own_encoder: whether critics see the proxy's own features rather than the suite's CLIP.
        plugins: the files that were given with ``--plugin``.
        runtime: the device and the settings of speed as they were settled.
        processes: how many share the run.
    """
    speed = runtime.model_dump(mode="json", exclude={*Machine.model_fields})
    return {
        "versions": versions(), "hardware": {**hardware(runtime.device), "processes": processes}, "speed": speed,
        "git": git_revision(),
        "weights": suite.weights_hashes(), "rewards": {name: reward.weights_hash() for name, reward in rewards.items()},
        "critic_encoder": "proxy" if own_encoder else "suite clip",
        **_foreign_metrics(),
        "plugins": {str(p.path): p.sha256 for p in plugins}, "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def _foreign_metrics() -> dict[str, Any]:
    """Write down what the numbers of other people's metrics mean, for a report that does not have their code."""
    foreign = [cls for cls in metrics.in_order() if is_foreign(cls)]
    described = {cls.name: {"title": cls.title, "numbers": [asdict(n) for n in cls.numbers]} for cls in foreign}
    return {"metrics": described} if described else {}


def resume_command(
    config: RunConfig, out: Path, runtime: Runtime, plugins: Sequence[Plugin], tracker: str | None = None,
    processes: int = 1,
) -> str:  # fmt: skip
    """Write the command that goes on with a run: its own recorded configuration, whatever was typed at first.

    Several processes of one machine are started by torchrun, which comes with torch and needs no settings.

    Args:
        config: the configuration of the run.
        out: the folder of all results.
        runtime: the device and the settings of speed that were asked for.
        plugins: the files that were given with ``--plugin``.
        tracker: the kind that was asked for, or None.
        processes: how many share the run.
    """
    record = config.folder(out) / "config.json"
    start = ["overopt-bench"]
    if processes > 1:
        start = ["torchrun", "--standalone", "--nproc_per_node", str(processes), "-m", "overopt_bench"]
    command = [*start, "run", "--config", str(record), "--out", str(out), *arguments(runtime)]
    for plugin in plugins:
        command += ["--plugin", str(plugin.path)]
    if tracker is not None:
        command += ["--tracker", tracker]
    return command_line(command)
