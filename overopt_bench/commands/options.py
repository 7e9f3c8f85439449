"""The options of the commands, each declared once; names and meaning are the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Words = list[str] | None

Algo = Annotated[str | None, typer.Option(metavar="NAME", help="Algorithm; see `overopt-bench list algorithms`.")]
Proxy = Annotated[
    str | None, typer.Option(metavar="NAME", help="Reward to train on; see `overopt-bench list rewards`.")
]
Algos = Annotated[str, typer.Option(metavar="A,B", help="Algorithms, separated by commas.")]
Proxies = Annotated[str, typer.Option(metavar="P,Q", help="Proxy rewards, separated by commas.")]
Seeds = Annotated[str, typer.Option(help="Seeds, such as 0-4 or 0,2,7.")]
Gold = Annotated[
    Words,
    typer.Option(
        metavar="NAME",
        help="Reward to record but never to train on; may be repeated. The suite's own is always recorded.",
    ),
]
Model = Annotated[
    str | None, typer.Option(metavar="PATH_OR_ID", help="Base model of the suite sd: a folder or a Hub id[@REVISION].")
]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Read weights from DIR/<repository's name>/ instead of the Hub and its cache."),
]
PromptFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Train on the prompts of this file: .txt, .csv, .tsv, .jsonl, .json. [the suite's]"
    ),
]
PromptColumn = Annotated[
    str | None, typer.Option(metavar="NAME", help="Column of --prompts that holds them. [prompt, text, caption]")
]
Precision = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16 passes. [the suite's on a GPU, float32 on a CPU]")
]
MicroBatch = Annotated[
    int | None, typer.Option(help="Samples per network pass; changes memory and speed, no result. [what fits]")
]
Compile = Annotated[bool, typer.Option("--compile", help="Run the U-Net through torch.compile.")]
Attention = Annotated[str | None, typer.Option(help="sdpa, eager or xformers. [diffusers' choice]")]
Suite = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Base model, prompts and rewards. Default: sd14 where it can run, else mini."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of the run. [0]")]
Budget = Annotated[int | None, typer.Option(help="When to stop, in --budget-unit. [the suite's]")]
BudgetUnit = Annotated[
    str | None, typer.Option(help="queries (images scored by the proxy), nfe (U-Net evaluations) or seconds. [queries]")
]
Set = Annotated[
    Words, typer.Option(metavar="NAME=VALUE", help="A parameter of the algorithm; may be repeated. `list` shows all.")
]
NumSteps = Annotated[int | None, typer.Option(help="Denoising steps. [the suite's]")]
GuidanceScale = Annotated[float | None, typer.Option(help="Classifier-free guidance; 1 is none. [the suite's]")]
Eta = Annotated[float | None, typer.Option(help="Noise of the DDIM sampler, above 0 to 1. [the suite's]")]
LoraRank = Annotated[int | None, typer.Option(help="Rank of the LoRA. [the suite's]")]
LoraAlpha = Annotated[int | None, typer.Option(help="Alpha of the LoRA; its scale is alpha / rank. [the suite's]")]
EvalPoints = Annotated[int | None, typer.Option(help="Evaluations, start and end included. [the suite's]")]
EvalImages = Annotated[int | None, typer.Option(help="Images per prompt split and evaluation. [the suite's]")]
EvalSeed = Annotated[
    int | None, typer.Option(help="Seed of the evaluation noise; compare runs only at equal ones. [0]")
]
TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Go on in the place of a process that died and still holds the run folder.")
]
Tracker = Annotated[str | None, typer.Option(help="Also log live to tensorboard or wandb.")]
TrainSplit = Annotated[
    str | None, typer.Option(help="Prompts of the suite to train on: train, or tuning to search settings.")
]
Tag = Annotated[str | None, typer.Option(help="Appended to the run folder's name.")]
Plugin = Annotated[
    Words, typer.Option(metavar="FILE", help="Python file with own rewards or algorithms; may be repeated.")
]
Config = Annotated[
    Path | None, typer.Option(help="YAML or TOML with these options, or a run's config.json; the command line wins.")
]
Out = Annotated[Path, typer.Option(help="Folder of results.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. [cuda where there is one]")]
What = Annotated[
    str | None, typer.Argument(help="algorithms, rewards, metrics, suites or presets; all where left out.")
]
Results = Annotated[Words, typer.Argument(help="Run folders or folders of runs. [your own in results]")]
Reference = Annotated[
    bool, typer.Option("--reference", help="Also draw the repository's own records of the same settings.")
]
ReportOut = Annotated[Path, typer.Option(help="Folder of the report.")]
EvalRewards = Annotated[
    Words, typer.Option("--reward", metavar="NAME", help="Reward to ask; may be repeated. [the suite's]")
]
Preset = Annotated[
    Words, typer.Option(metavar="NAME", help="Named settings, see `list presets`; may be repeated, the later wins.")
]
Rewards = Annotated[list[str], typer.Option("--reward", metavar="NAME", help="Reward to ask; may be repeated.")]
Prompt = Annotated[str, typer.Option(metavar="TEXT", help="What the pictures should show.")]
Pictures = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Picture files of any size and mode.")]
Csv = Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")]
Run = Annotated[Path, typer.Argument(help="A run folder.")]
AnyRun = Annotated[Path | None, typer.Argument(metavar="[RUN]", help="A run folder, to say how and where it was made.")]
Prompts = Annotated[list[str], typer.Option(metavar="TEXT", help="What to draw; may be repeated.")]
EvalPrompts = Annotated[
    Words, typer.Option(metavar="TEXT", help="What to draw; may be repeated. [the suite's held-out prompts]")
]
Count = Annotated[int, typer.Option(help="Images per prompt.")]
SampleSeed = Annotated[int, typer.Option(help="Seed of the noise.")]
ImagesOut = Annotated[Path, typer.Option(help="Folder of the images.")]
