"""Runs that tests start, and how they start several processes: by torch's launcher, or ``accelerate launch``, which calls it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    str(Path(sys.executable).parent / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
]  # fmt: skip

SMALLEST = {
    "suite": "mini",
    "budget": 32,
    "eval_points": 2,
    "eval_images": 4,
    "num_steps": 2,
}  # what a whole run can do with
SLOW_PLUGIN = str(Path(__file__).parent / "plugins" / "slow.py")
SLOW_RUN = [
    "--plugin", SLOW_PLUGIN, "--algo", "ddpo", "--proxy", "slow", "--suite", "mini", "--device", "cpu", "--budget", "32",
    "--eval-points", "2", "--eval-images", "4", "--num-steps", "2", "--set", "samples_per_epoch=16",
    "--set", "images_per_prompt=8",
]  # fmt: skip
