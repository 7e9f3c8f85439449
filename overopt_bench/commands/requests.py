"""What each command takes, as a model whose fields are its arguments in Python and its options on the command line.

The options of a run are declared in ``options.py`` and those of speed and memory in ``compute/runtime.py``; here stand
the ones that say how a command is asked, and those of one command alone. ``option`` declares what may be left out;
``pydantic.Field`` what must be given, or may be given by position (``kw_only=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from overopt_bench.compute.runtime import Machine, Runtime
from overopt_bench.options import (
    LARGEST_SEED,
    BaseModelChoice,
    Names,
    RunFolder,
    RunIdentity,
    RunSettings,
    SuiteChoice,
    option,
)

PROMPT = "What the pictures should show; may be repeated."


def argument(metavar: str) -> dict[str, Any]:
    """Mark a field as an argument of the command line that has no name, for ``json_schema_extra``."""
    return {"argument": True, "metavar": metavar}


class Plugins(BaseModel):
    """Files that add algorithms, rewards and suites."""

    plugin: Names = option("Python file with own rewards or algorithms; may be repeated.", (), metavar="FILE")


class Sources(Plugins):
    """Where the settings of a run come from, besides the options themselves."""

    set: Names = option("A parameter of the algorithm; may be repeated. `list` shows all.", (), metavar="NAME=VALUE")
    prompts: Path | None = option(
        "Train on the prompts of this file: .txt, .csv, .tsv, .jsonl, .json.", None, source="the suite's", metavar="FILE",
    )  # fmt: skip
    prompt_column: str | None = option(
        "Column of --prompts that holds them.", None, source="prompt, text, caption", metavar="NAME"
    )
    preset: Names = option("Named settings, see `list presets`; may be repeated, the later wins.", (), metavar="NAME")
    config: Path | None = option(
        "YAML or TOML with these options, or a run's config.json; the command line wins.", None, metavar="FILE"
    )


class Recording(RunFolder):
    """Where runs are recorded."""

    out: Path = option("Folder of results.", Path("results"), metavar="DIR")
    tracker: str | None = option("Also log live to tensorboard or wandb.", None, metavar="NAME")
    take_over: bool = option("Go on in the place of a process that died and still holds the run folder.", False)


class RunRequest(Runtime, Recording, Sources, RunSettings, RunIdentity):
    """What ``run`` takes."""


class Grid(BaseModel):
    """The runs of a sweep: every algorithm on every proxy with every seed."""

    algo: str = option("Algorithms, separated by commas.", metavar="A,B")
    proxy: str = option("Proxy rewards, separated by commas.", metavar="P,Q")
    seeds: str = option("Seeds, such as 0-4 or 0,2,7.", "0-4")


class Working(BaseModel):
    """How the runs of a sweep are worked off: side by side here, one by its index, or on a cluster."""

    jobs: int | None = option(
        "Runs side by side, each a process with one thread; 1 is one after the other with all threads.", None,
        source="one a core, or one a GPU", ge=1,
    )  # fmt: skip
    grid: Path | None = option("Take the runs from a file that --write made, settings and all.", None, metavar="FILE")
    write: Path | None = option("Freeze the runs and their order in a new file; run none.", None, metavar="FILE")
    list: bool = option("Print index, state and command of each run; run none.", False)
    index: int | None = option(
        "Run the one with this index, counted from 0.", None, source="SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX", ge=0
    )
    executor: Literal["local", "slurm"] = option("Who works off the runs: this machine or an array of jobs.", "local")
    dry_run: bool = option("With --executor slurm: print the batch script; submit nothing.", False)
    emit: Literal["kubernetes"] | None = option("Print a manifest that works off the runs; run none.", None)
    resource: Names = option(
        "What each job asks of the cluster, such as time=4:00:00 or gres=gpu:1; may be repeated.",
        (),
        metavar="NAME=VALUE",
    )


class SweepRequest(Working, Runtime, Recording, Sources, RunSettings, Grid):
    """What ``sweep`` takes."""


class BenchRequest(Runtime, Sources, RunSettings):
    """What ``bench`` takes."""


class ReportRequest(BaseModel):
    """What ``report`` takes."""

    results: Names = Field(
        default=(), kw_only=False, description="Run folders or folders of runs. [your own in results]",
        json_schema_extra=argument("RESULTS"),
    )  # fmt: skip
    reference: bool = option("Also draw the repository's own records of the same settings.", False)
    out: Path = option("Folder of the report.", Path("report"), metavar="DIR")


class ListRequest(BaseModel):
    """What ``list`` takes."""

    what: str | None = Field(
        default=None, kw_only=False, description="algorithms, mitigations, rewards, metrics, suites or presets; all where left out.",
        json_schema_extra=argument("WHAT"),
    )  # fmt: skip


class Run(BaseModel):
    """A run folder whose policy is drawn from."""

    run: Path = Field(kw_only=False, description="A run folder.", json_schema_extra=argument("RUN"))


class Noise(BaseModel):
    """How many images are drawn of each prompt, and from which noise."""

    count: int = option("Images per prompt.", 4)
    seed: int = option("Seed of the noise.", 0)


class Drawings(Noise, Run):
    """Images of a trained policy."""

    prompt: Names = Field(kw_only=False, description=PROMPT, json_schema_extra={"metavar": "TEXT"})
    out: Path = option("Folder of the images.", Path("samples"), metavar="DIR")


class SampleRequest(Runtime, Plugins, Drawings):
    """What ``sample`` takes."""


class Comparison(Noise, Run):
    """A trained policy beside its base model."""

    prompt: Names = Field(
        default=(),
        kw_only=False,
        description=f"{PROMPT} [the suite's held-out prompts]",
        json_schema_extra={"metavar": "TEXT"},
    )
    reward: Names = Field(
        default=(), kw_only=False, description="Reward to ask; may be repeated. [the suite's]",
        json_schema_extra={"metavar": "NAME"},
    )  # fmt: skip


class EvalRequest(Runtime, Plugins, Comparison):
    """What ``eval`` takes."""


class Pictures(BaseModel):
    """Pictures from disk, and who judges them."""

    image: Sequence[Path] = Field(
        kw_only=False, description="Picture files of any size and mode.", json_schema_extra=argument("IMAGE")
    )
    reward: Names = Field(
        kw_only=False, description="Reward to ask; may be repeated.", json_schema_extra={"metavar": "NAME"}
    )
    prompt: str = option("What the pictures should show.", "", metavar="TEXT")
    csv: bool = option("Print CSV instead of a table.", False)


class ScoreRequest(Machine, Plugins, SuiteChoice, Pictures):
    """What ``score`` takes."""


class Questions(BaseModel):
    """What a critic could explain, of which rewards and on how many images of which policy."""

    proxy: str | None = Field(
        default=None, kw_only=False, description="Proxy rewards, separated by commas. [the run's]",
        json_schema_extra={"metavar": "P,Q"},
    )  # fmt: skip
    run: Path | None = option(
        "Draw from the policy of this run folder, by the last adapter that it saved, as it was sampled there.", None,
        source="the base model", metavar="RUN",
    )  # fmt: skip
    images: int = option("Images to draw, of as many prompts as give 16 each.", 1024, ge=1)
    seed: int = option("Seed of prompts, noise and critics.", 0, ge=0, le=LARGEST_SEED)
    train_split: str | None = option(
        "Prompts of the suite: train, or tuning to search settings.", None, source="the run's, else train"
    )
    num_steps: int | None = option("Denoising steps.", None, source="the run's, else the suite's", ge=2, le=1000)
    skip_last_steps: int | None = option(
        "Last denoising steps not trained on.", None, source="the run's, else the most that the suite sets", ge=0
    )
    out: Path | None = option("Also write the numbers to this file, .json or .csv.", None, metavar="FILE")


class CeilingRequest(Runtime, Plugins, BaseModelChoice, Questions):
    """What ``ceiling`` takes."""


class CompareRequest(BaseModel):
    """What ``compare`` takes."""

    a: str = Field(
        kw_only=False, description="A label, such as ddpo, or a folder with the runs of one.",
        json_schema_extra=argument("A"),
    )  # fmt: skip
    b: str = Field(
        kw_only=False, description="The label or folder to compare it with.", json_schema_extra=argument("B")
    )
    results: Path | None = option(
        "Folder of runs that labels are looked for in.", None, source="your own in results", metavar="DIR"
    )
    csv: bool = option("Print CSV instead of a table.", False)


class DoctorRequest(Machine, BaseModelChoice):
    """What ``doctor`` takes."""

    run: Path | None = Field(
        default=None, kw_only=False, description="A run folder, to say how and where it was made.",
        json_schema_extra=argument("RUN"),
    )  # fmt: skip
