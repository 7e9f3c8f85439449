"""Whether there is a card that torch can compute on, asked of torch only where there may be one."""

from __future__ import annotations

import ctypes
import runpy
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from overopt_bench.lazy import torch


@cache
def cards() -> int:
    """Count the CUDA devices that torch finds here."""
    return torch.cuda.device_count() if torch_may_find_one() else 0


@cache
def torch_may_find_one() -> bool:
    """Say whether it is worth asking torch, whose import takes longer than everything else that a refusal needs.

    False where torch is built without CUDA, or with NVIDIA's CUDA on a machine without NVIDIA's driver.
    """
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    build = runpy.run_path(str(Path(spec.origin).with_name("version.py")))  # a few assignments
    if build.get("hip") is not None:  # AMD's, which brings its own libraries
        return True
    return build.get("cuda") is not None and (Path("/proc/driver/nvidia").exists() or _loads_driver())


def _loads_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
