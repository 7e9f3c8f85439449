"""A sweep as an array of Slurm jobs: ``submitit`` writes the batch script and submits it; Slurm queues, stops and requeues."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from overopt_bench.commands.grid import Cells
from overopt_bench.commands.workers import LOGS
from overopt_bench.errors import INTERRUPTED, UserError
from overopt_bench.shell import command_line

GRACE = 60  # seconds before a job's time is over in which its run saves its state
PARALLEL = 256  # jobs of an array at a time unless a user says otherwise
# a run that was stopped for time is saved: its job goes back to the queue; srun hands on the status of the run
TEARDOWN = ["status=$?", f'[ "$status" != {INTERRUPTED} ] || scontrol requeue "$SLURM_JOB_ID"', 'exit "$status"']


def submit(cells: Cells, frozen: Path | None, resources: Sequence[str], jobs: int | None, dry_run: bool) -> None:
    """Submit what is not complete as one array of jobs, or print the script that would be submitted.

    Args:
        cells: the runs of the sweep.
        frozen: the file that holds them; where None, one is written beside the jobs' logs.
        resources: options of ``sbatch`` as ``NAME=VALUE``; ``setup=COMMAND`` is a line of the script before the run.
        jobs: how many at a time; None for ``PARALLEL``.
        dry_run: whether to print the script and submit nothing.

    Raises:
        UserError: where Slurm or submitit is missing, or refuses the job.
    """
    todo = cells.todo()
    if not todo:
        print(f"sweep: all {len(cells.configs)} runs are complete")
        return
    folder = (cells.out / LOGS).absolute()
    grid = frozen or folder / f"grid-{hashlib.sha256(cells.text().encode()).hexdigest()[:12]}.json"
    script = _executor(folder, todo, resources, jobs)
    command = command_line(
        [
            sys.executable,
            "-m",
            "overopt_bench",
            "sweep",
            "--grid",
            str(grid.absolute()),
            "--out",
            str(cells.out.absolute()),
        ]
    )
    if dry_run:
        print(script._make_submission_file_text(command, ""))
        if frozen is None:
            print(f"before you submit it: overopt-bench sweep ... --write {grid}", file=sys.stderr)
        return
    for program in ("sbatch", "srun"):
        if shutil.which(program) is None:
            raise UserError(f"--executor slurm: there is no {program} here; submit from a login node, or see --dry-run")
    try:
        folder.mkdir(parents=True, exist_ok=True)  # for the jobs' output
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; use another --out") from None
    if frozen is None:
        cells.write(grid)
    try:
        job = script._submit_command(command)
    except RuntimeError as error:  # submitit's own, with what sbatch said
        raise UserError(f"--executor slurm: sbatch refuses the job: {error}") from None
    print(
        f"submitted {len(todo)} runs as job {job.job_id}; logs in {folder}; `squeue -j {job.job_id}`, `scancel {job.job_id}`"
    )


def _executor(folder: Path, todo: Sequence[int], resources: Iterable[str], jobs: int | None) -> Any:
    """Return submitit's executor with the options of ``sbatch`` for an array of these runs."""
    try:
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit: pip install 'overopt-bench[slurm]'") from None

    class Executor(submitit.SlurmExecutor):
        """The same, also where there is no Slurm: a script can be written anywhere."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    setup, options = _asked(resources)
    executor = Executor(folder)
    executor.update_parameters(
        job_name="overopt-bench", cpus_per_task=1, stderr_to_stdout=True, teardown=TEARDOWN,
        setup=["export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}", *setup],
        additional_parameters={
            "array": f"{_ranges(todo)}%{jobs or PARALLEL}", "requeue": True, "signal": f"TERM@{GRACE}", **options,
        },
    )  # fmt: skip
    # as submitit does for its own arrays; and none of its defaults, five minutes and a key for accounting
    executor.parameters.update(map_count=len(todo), time=None, wckey=None)
    return executor


def _asked(resources: Iterable[str]) -> tuple[list[str], dict[str, str | bool]]:
    """Split what a user asks of Slurm into lines of the script and options of ``sbatch``."""
    setup, options = list[str](), dict[str, str | bool]()
    for text in resources:
        name, equals, value = text.partition("=")
        if not name or name == "array":
            raise UserError(f"--resource {text!r}: write an option of sbatch such as time=4:00:00; the array is fixed")
        if name == "setup":
            setup.append(value)
        else:
            options[name.replace("_", "-")] = value if equals else True
    return setup, options


def _ranges(indices: Sequence[int]) -> str:
    """Write ascending numbers as Slurm does: ``0-3,7``."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return ",".join("-".join(map(str, part)) for part in parts)
