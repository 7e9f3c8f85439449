"""What ``overopt-bench doctor`` says: what is installed, what is missing and how to get it, what a run takes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from overopt_bench.compute.runtime import Runtime
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.recording.identity import read_config
from overopt_bench.recording.provenance import versions
from overopt_bench.recording.sessions import read_sessions, session_differences
from overopt_bench.registry import algorithms, get_suite, rewards
from overopt_bench.types import Suite
from overopt_bench.weights import Repo, Weights, digest

GB = 1e9
REWARD_BYTES = 3.5e9  # CLIP ViT-L/14 and ImageReward in float32: the default proxy and gold
CLIP_L_FLOPS = 0.162e12  # one image through CLIP ViT-L/14's image tower
UTILISATION = 0.4  # of a card's peak, an assumption
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
    "A10": 125e12,
    "V100": 125e12,
}


@dataclass
class Diagnosis:
    """Lines to print, and what stands in the way of a default run, one line each."""

    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)


def diagnose(name: str, reason: str, runtime: Runtime, model: str | None = None) -> Diagnosis:
    """Look at packages, weights, disk and device for one suite; asks no network and loads no model."""
    diagnosis = Diagnosis()
    suite = get_suite(name, runtime.weights, model)
    diagnosis.lines.append("packages  " + "  ".join(f"{k} {v}" for k, v in versions().items()))
    diagnosis.lines.append(f"suite     {name}: {reason}")
    _weights(diagnosis, suite, Weights(runtime.weights))
    _device(diagnosis, suite, runtime)
    _expected(diagnosis, suite, runtime)
    return diagnosis


def describe_run(folder: Path) -> Diagnosis:
    """What a run folder holds: the essentials of its configuration, where it stands, and each session that worked on it.

    Raises:
        UserError: where the folder is no run.
    """
    config, diagnosis = read_config(folder), Diagnosis()
    unit = config.budget_unit
    diagnosis.lines.append(
        f"run       {config.algo} on {config.proxy}, gold {', '.join(config.gold)}, seed {config.seed}"
    )
    diagnosis.lines.append(
        f"suite     {config.suite}{f' ({config.model})' if config.model else ''}, {config.precision}"
    )
    diagnosis.lines.append(
        f"sampler   {config.num_steps} steps, guidance {config.guidance_scale:g}, eta {config.eta:g};"
        f" LoRA of rank {config.lora_rank}, alpha {config.lora_alpha}"
    )
    diagnosis.lines.append("settings  " + (" ".join(f"{k}={v}" for k, v in config.params.items()) or "none"))
    try:
        status = json.loads((folder / "status.json").read_text())
        reason = f": {status['reason']}" if status["reason"] else ""
        diagnosis.lines.append(
            f"status    {status['state']} at {status['queries']} queries of {config.budget} {unit}{reason}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        diagnosis.lines.append("status    cannot be read")
    sessions = read_sessions(folder)
    for number, session in enumerate(sessions, 1):
        machine = session.get("hardware", {})
        diagnosis.lines.append(
            f"session {number} from {session.get('queries')} queries, {session.get('started')}: "
            + ", ".join(f"{name} {value}" for name, value in machine.items())
            + f", revision {str(session.get('git'))[:10]}"
        )
    if sessions:
        diagnosis.lines.append(
            "versions  " + "  ".join(f"{k} {v}" for k, v in sessions[-1].get("versions", {}).items())
        )
    diagnosis.lines += [f"changed   {name}: {values}" for name, values in session_differences(sessions)]
    return diagnosis


def _weights(diagnosis: Diagnosis, suite: Suite, weights: Weights) -> None:
    needed = list(_repos(suite))
    if not needed:
        missing = suite.missing()
        diagnosis.lines.append(f"weights   {missing or 'ship with the package'}")
        diagnosis.problems += [missing] if missing else []
        return
    if suite.takes_model():
        try:
            diagnosis.lines.append(f"weights   base model: {suite.pipeline_folder()}")
        except UserError as error:
            diagnosis.problems.append(str(error))
    to_fetch = 0
    for repo, users in needed:
        absent = weights.absent(repo)
        size = sum(repo.files[file] for file in absent)
        to_fetch += size
        head = f"weights   {repo.id} @{repo.revision[:10]} for {users} ({repo.licence}):"
        if absent:
            diagnosis.lines.append(f"{head} {size / GB:.1f} GB missing\n            {repo.command(weights.folder)}")
        else:
            diagnosis.lines.append(f"{head} here{''.join(_unknown_files(repo, weights))}")
    for repo, users in needed:
        if {"the suite", suite.gold} & {*users.split(", ")} and weights.absent(repo):
            diagnosis.problems.append(f"{repo.id} is missing")
    where = weights.folder or _cache()
    free = shutil.disk_usage(next(p for p in (where, *where.parents) if p.exists())).free
    diagnosis.lines.append(
        f"disk      {free / GB:.0f} GB free in {where}, {to_fetch / GB:.1f} GB to fetch for all rewards"
    )
    if free < to_fetch:
        diagnosis.lines[-1] += ": not enough for all of them"


def _repos(suite: Suite) -> Iterator[tuple[Repo, str]]:
    """Each repository once, and who reads it."""
    users: dict[Repo, list[str]] = {}
    for repo in suite.repos():
        users.setdefault(repo, []).append("the suite")
    for name in rewards.names(suite.family()):
        for repo in getattr(rewards.get(name, suite.family()), "repos", ()):
            users.setdefault(repo, []).append(name)
    yield from ((repo, ", ".join(names)) for repo, names in users.items())


def _unknown_files(repo: Repo, weights: Weights) -> Iterator[str]:
    for file, published in repo.sha256.items():
        path = weights.find(repo, file)
        if path is not None and digest(path) != published:
            yield f"; {file} is not the published one (SHA-256)"


def _cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _device(diagnosis: Diagnosis, suite: Suite, runtime: Runtime) -> None:
    if runtime.device == "cpu":
        diagnosis.lines.append(f"device    cpu, {torch.get_num_threads()} threads")
        if not suite.small:
            diagnosis.lines[-1] += "; a run of the real model takes weeks here"
        return
    free, total = torch.cuda.mem_get_info(runtime.device)
    name = torch.cuda.get_device_name(runtime.device)
    diagnosis.lines.append(f"device    {runtime.device}, {name}: {free / GB:.0f} of {total / GB:.0f} GB free")


def _expected(diagnosis: Diagnosis, suite: Suite, runtime: Runtime) -> None:
    """Memory and time of a default run of each algorithm, computed from the architecture; nothing is loaded."""
    architecture = suite.architecture()
    if architecture is None:
        return
    from overopt_bench.diffusion.policy import PRECISIONS
    from overopt_bench.sizing.costs import costs, run_flops
    from overopt_bench.sizing.micro_batch import needs

    precision, defaults = suite.defaults.precision, suite.defaults
    cost = costs(architecture.unet, architecture.vae, PRECISIONS[precision], architecture.text_parameters)
    guided = defaults.guidance_scale != 1
    peak = _peak_flops(runtime)
    total = torch.cuda.get_device_properties(runtime.device).total_memory if runtime.device != "cpu" else None
    diagnosis.lines.append(
        f"expected  {precision}, {defaults.num_steps} steps, {defaults.budget} queries; computed, not measured"
        + ("" if peak is None else f"; hours at {UTILISATION:.0%} of the card's {peak / 1e12:.0f} TFLOP/s")
    )
    for algo in (algorithms.get(name) for name in algorithms.names()):
        if algo.role != "trains":
            continue
        image = algo.cost(algo.Params(**suite.settings(algo.name)), defaults.num_steps)
        checkpoint = algo.recomputes and not suite.small
        need, least = (needs(cost, guided, REWARD_BYTES, image, again) for again in (checkpoint, True))
        flops = run_flops(
            cost, image, queries=defaults.budget, num_steps=defaults.num_steps, guided=guided, checkpointed=checkpoint,
            encoder_flops=CLIP_L_FLOPS,
        )  # fmt: skip
        line = f"  {algo.name:<10} {need.least / GB:.0f} GB at micro-batch 1"
        line += "" if checkpoint else f" ({least.least / GB:.0f} GB with --checkpoint)"
        line += f", {need.training / GB:.1f} GB for each sample more; {flops / 1e15:.0f} PFLOP"
        line += "" if peak is None else f", about {flops / peak / UTILISATION / 3600:.0f} h"
        if total is not None:
            line += f"; micro-batch here {need.fitting(total, need.training)}"
            if not least.fitting(total, least.training):
                diagnosis.problems.append(f"the card is too small for {algo.name}: it has {total / GB:.0f} GB")
        diagnosis.lines.append(line)


def _peak_flops(runtime: Runtime) -> float | None:
    """Half-precision peak of the card in FLOP/s, where it is a known one (dense, as the makers give it)."""
    if runtime.device == "cpu":
        return None
    name = torch.cuda.get_device_name(runtime.device)
    return next((flops for card, flops in PEAK_FLOPS.items() if card in name), None)
