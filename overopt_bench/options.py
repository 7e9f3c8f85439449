"""The options of a run, each declared once: its type, range, meaning, and where its default comes from.

A field of one of these models is an option of ``run``, ``sweep`` and ``bench``, in Python and on the command line, and a
part of every run's recorded configuration. What changes speed and memory but no result is declared in
``compute/runtime.py``; what only one command needs, in ``commands/requests.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

BudgetUnit = Literal["queries", "nfe", "seconds"]
Precision = Literal["float32", "bfloat16", "float16"]
Names = Annotated[  # may be repeated; kept as a tuple, one alone as well
    Sequence[str], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given), AfterValidator(tuple)
]
LARGEST_SEED = 2**63 - 1


def option(
    description: str, default: Any = ..., *, source: str | None = None, metavar: str | None = None, later: bool = False,
    **limits: Any,
) -> Any:  # fmt: skip
    """Declare a field that is an option of commands.

    The result is typed ``Any``, so that type checkers see an argument that may be left out wherever the model's fields
    become a function's arguments; without a default the checked model itself still requires a value.

    Args:
        description: a sentence for ``--help``.
        default: the value where none is given.
        source: words that say where the default comes from, shown in its place.
        metavar: what stands for the value in ``--help``.
        later: whether the field came after the first published results. Such a field counts in a configuration's hash
            only where it differs from its default, so that those results keep their hashes.
        limits: the range, as ``pydantic.Field`` takes it: ``ge``, ``le``, ``gt``, ``lt``, ``pattern``, ``max_length``.
    """
    extra: dict[str, Any] = {"source": source, "metavar": metavar, "later": later}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def is_option(field: FieldInfo) -> bool:
    """Return whether ``option`` declared a field, so that a caller may leave it out."""
    return isinstance(field.json_schema_extra, dict) and "source" in field.json_schema_extra


def note(field: FieldInfo, name: str) -> Any:
    """Return what ``option`` was told of a field besides its default and range, or None where it was told nothing."""
    extra = field.json_schema_extra
    return extra.get(name) if isinstance(extra, dict) else None


def command_line_name(name: str) -> str:
    """Return the option of the command line for a field: ``--eval-images`` for ``eval_images``."""
    return "--" + name.replace("_", "-")


def arguments(model: BaseModel) -> Iterator[str]:
    """Yield the command line's arguments that say what a model holds beyond its defaults.

    A field without a fixed default (``source``) is always said, unless it is None.
    """
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        if value is None or (value == field.get_default() and note(field, "source") is None):
            continue
        yield from words(name, value)


def words(name: str, value: Any) -> Iterator[str]:
    """Yield the command line's arguments that give a value to an option."""
    if isinstance(value, bool):
        yield command_line_name(name if value else f"no_{name}")
    else:
        for item in value if isinstance(value, list | tuple) else (value,):
            yield from (command_line_name(name), str(item))


def choices(field: FieldInfo) -> tuple[str, ...]:
    """Return the values that a field of a ``Literal`` type, or of that or None, allows; none for other types."""
    literals = [kind for kind in (field.annotation, *get_args(field.annotation)) if get_origin(kind) is Literal]
    return tuple(value for kind in literals for value in get_args(kind))


def describe(field: FieldInfo) -> str:
    """Return a field's description, what it allows, and in brackets where its value comes from if none is given."""
    text, allowed, source = str(field.description), choices(field), note(field, "source")
    if not all(choice in text for choice in allowed):
        text = f"{text.rstrip('.')}: {', '.join(allowed[:-1])} or {allowed[-1]}."
    shows_default = not (field.is_required() or isinstance(field.default, bool) or field.default in (None, "", ()))
    if source is None and shows_default:
        source = field.default
    return text if source is None else f"{text} [{source}]"


class PolicySettings(BaseModel):
    """How a policy is sampled and what of it is trained; the same in training and in evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_steps: int = option("Denoising steps.", source="the suite's", ge=2, le=1000)
    guidance_scale: float = option(
        "Classifier-free guidance; 1 is none.", source="the suite's", ge=1, allow_inf_nan=False
    )
    eta: float = option("Noise of the DDIM sampler, above 0 to 1.", source="the suite's", gt=0, le=1)
    lora_rank: int = option(
        "Rank of the LoRA on to_q, to_k, to_v and to_out.0 of every attention.", source="the suite's", gt=0
    )
    lora_alpha: int = option("Alpha of the LoRA; its scale is alpha / rank.", source="the suite's", gt=0)
    precision: Precision = option(
        "Numbers of the base model's passes.", "float32", source="the suite's on a GPU, float32 on a CPU", later=True
    )


class SuiteDefaults(PolicySettings):
    """How a suite samples, adapts, trains and evaluates unless the user says otherwise."""

    budget: int = option("When to stop, in --budget-unit.", source="the suite's", gt=0)
    eval_points: int = option("Evaluations, start and end included.", source="the suite's", ge=2)
    eval_images: int = option("Images per prompt split and evaluation.", source="the suite's", gt=0)


class RunIdentity(BaseModel):
    """Which run of an experiment it is: what a sweep multiplies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    algo: str = option("Algorithm; see `overopt-bench list algorithms`.", metavar="NAME")
    proxy: str = option("Reward to train on; see `overopt-bench list rewards`.", metavar="NAME")
    seed: int = option("Seed of the run.", 0, ge=0, le=LARGEST_SEED)


class SuiteChoice(BaseModel):
    """Which suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = option("Base model, prompts and rewards.", source="sd14 where it can run, else mini", metavar="NAME")


class BaseModelChoice(SuiteChoice):
    """Which base model, of those that a suite offers."""

    model: str | None = option(
        "Base model of a suite that takes one: a folder or a Hub id[@REVISION].", None, metavar="PATH_OR_ID", later=True
    )


class Task(BaseModelChoice):
    """What is trained, and which rewards are recorded."""

    gold: Names = option(
        "Reward to record but never to train on; may be repeated. The suite's own is always recorded.", metavar="NAME",
        min_length=1,
    )  # fmt: skip


class RunSettings(SuiteDefaults, Task):
    """Everything that determines a run's numbers besides its identity, the algorithm's parameters and the prompts."""

    budget_unit: BudgetUnit = option(
        "What the budget counts: queries (images scored by the proxy), nfe (U-Net evaluations) or seconds.", "queries"
    )
    mitigation: Names = option(
        "What holds overoptimization back, such as kl:beta=0.01; may be repeated. See `list mitigations`.", (),
        metavar="NAME:PARAMETER=VALUE", later=True,
    )  # fmt: skip
    eval_seed: int = option("Seed of the evaluation noise; compare runs only at equal ones.", 0, ge=0, le=LARGEST_SEED)
    train_split: str = option("Prompts of the suite to train on: train, or tuning to search settings.", "train")


class RunFolder(BaseModel):
    """How a run's folder is named beyond what its settings say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tag: str = option("Appended to the run folder's name.", "", pattern=r"^[A-Za-z0-9_.-]*$", max_length=60)
