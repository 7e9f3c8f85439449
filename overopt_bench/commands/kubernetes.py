"""A sweep as a Kubernetes Indexed Job, printed for ``kubectl apply -f -``: each index is a run, retried by its exit status."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import yaml

from overopt_bench.commands.grid import Cells
from overopt_bench.errors import BAD_INPUT, INTERRUPTED, UserError

LARGEST = 1 << 20  # bytes that a ConfigMap holds
RETRIES = 3  # of a run that failed
DEFAULTS = {
    "image": None, "claim": "overopt-bench-results", "cpu": "1", "memory": "4Gi", "gpu": None, "namespace": None,
    "name": None,
}  # fmt: skip


def manifest(cells: Cells, resources: Sequence[str], jobs: int | None) -> str:
    """Return the YAML of a ConfigMap with the frozen runs, and of the Job that works them off.

    A run that exits with wrong input is not tried again; one that was interrupted, or whose node was drained, is,
    without counting as a failure. A pod is replaced only once it has ended, so that no run has two.

    Args:
        cells: the runs of the sweep.
        resources: ``NAME=VALUE`` with the names of ``DEFAULTS``; the image must be given.
        jobs: how many pods at a time; None for all.

    Raises:
        UserError: for a name that does not exist, or a sweep that is too large.
    """
    asked = _asked(resources)
    text = cells.text()
    if len(text.encode()) > LARGEST:
        raise UserError(
            f"{len(cells.configs)} runs do not fit into a ConfigMap; split the sweep, for instance by --seeds"
        )
    name = asked["name"] or f"overopt-bench-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    meta = {"name": name, **({"namespace": asked["namespace"]} if asked["namespace"] else {})}
    frozen = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "immutable": True, "data": {"grid.json": text}}
    count = len(cells.configs)
    spec = {
        "completionMode": "Indexed", "completions": count, "parallelism": min(jobs or count, count),
        "backoffLimitPerIndex": RETRIES, "podReplacementPolicy": "Failed",
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {"action": "Ignore", "onExitCodes": _exits(INTERRUPTED)},
            {"action": "FailIndex", "onExitCodes": _exits(BAD_INPUT)},
        ]},
        "template": {"spec": _pod(asked, name)},
    }  # fmt: skip
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": spec}
    return yaml.safe_dump_all([frozen, job], sort_keys=False, width=1000)


def _asked(resources: Sequence[str]) -> dict[str, str | None]:
    """Return what a user asks of the cluster, over ``DEFAULTS``."""
    asked: dict[str, str | None] = dict(DEFAULTS)
    for text in resources:
        name, _, value = text.partition("=")
        if name not in DEFAULTS or not value:
            raise UserError(f"--resource {text!r}: write NAME=VALUE; allowed: {', '.join(DEFAULTS)}")
        asked[name] = value
    if asked["image"] is None:
        raise UserError("--emit kubernetes needs --resource image=NAME, a container image with overopt-bench in it")
    return asked


def _exits(status: int) -> dict[str, Any]:
    """Return the condition that the container ended with a status."""
    return {"containerName": "run", "operator": "In", "values": [status]}


def _pod(asked: dict[str, str | None], name: str) -> dict[str, Any]:
    """Return a pod that runs the one run whose index Kubernetes tells it."""
    amounts = {"cpu": asked["cpu"], "memory": asked["memory"]}
    if asked["gpu"]:
        amounts["nvidia.com/gpu"] = asked["gpu"]
    cores = (asked["cpu"] or "1").partition(".")[0]
    container = {
        "name": "run", "image": asked["image"],
        "command": ["overopt-bench", "sweep", "--grid", "/grid/grid.json", "--out", "/results"],
        "env": [{"name": "OMP_NUM_THREADS", "value": cores if cores.isdigit() and cores != "0" else "1"}],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "volumeMounts": [{"name": "results", "mountPath": "/results"}, {"name": "grid", "mountPath": "/grid"}],
    }  # fmt: skip
    volumes = [
        {"name": "results", "persistentVolumeClaim": {"claimName": asked["claim"]}},
        {"name": "grid", "configMap": {"name": name}},
    ]
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 60,
        "containers": [container],
        "volumes": volumes,
    }
