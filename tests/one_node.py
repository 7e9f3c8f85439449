"""A Slurm cluster of this machine alone, without systemd: for root, with Debian's packages slurm-wlm and munge."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "squeue")
CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
KillWait=30
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def absent() -> str:
    """Say why no cluster can be started here; empty where one can."""
    if os.geteuid() != 0:
        return "a cluster of one node is started by root"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{missing[0]} is not installed: apt-get install slurm-wlm munge" if missing else ""


def ask(*words: str) -> str:
    """What a program of Slurm prints."""
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Run the cluster inside the block; programs find it by ``SLURM_CONF``."""
    host = os.uname().nodename.partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, cores=os.cpu_count()))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    pids = [folder / "slurmd.pid", folder / "slurmctld.pid", Path("/run/munge/munged.pid")]
    try:
        subprocess.run(["su", "-s", "/bin/sh", "munge", "-c", shutil.which("munged") or ""], check=True, timeout=60)
        for daemon in ("slurmctld", "slurmd"):
            subprocess.run([daemon], check=True, timeout=60)
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout:
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.5)
        yield
    finally:
        for path in pids:
            if path.exists():
                subprocess.run(["kill", path.read_text().strip()], check=False)
        del os.environ["SLURM_CONF"]
