"""The files of a diffusers pipeline: which of a folder's, or of a Hub repository's, are read; and reading them."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import yaml

from overopt_bench.diffusion.pipelines import KINDS, PARTS, cast
from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.weights import read_json

WITHOUT_SAFETY_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
STEMS = {  # of the weights' names, as diffusers and transformers write them
    "unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model",
}  # fmt: skip
VARIANTS = (None, "fp16", "bf16")  # in order of preference, before any other


@cache
def read_settings(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """Read the parameters that a suite sets for algorithms, by algorithm and name, from a YAML file."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return MappingProxyType({name: MappingProxyType(dict(params)) for name, params in content.items()})


class WeightFile(NamedTuple):
    """A part's weights by their path in the pipeline's folder: the one file, or the index that names its shards."""

    path: str
    variant: str | None
    sharded: bool


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide the loading bars of diffusers and transformers, which cover what a user should read."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    shown = [m for m in (diffusers_logging, transformers_logging) if m.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()


def read_index(folder: Path) -> dict[str, Any]:
    """Read ``model_index.json``.

    Raises:
        UserError: where it cannot be read, or the class that it names is none of ``KINDS``.
    """
    try:
        index = read_json(folder / "model_index.json")
        kind = str(index["_class_name"])
    except (UserError, LookupError) as error:
        raise UserError(f"{folder} is no diffusers pipeline: model_index.json cannot be read ({error})") from None
    if kind not in KINDS:
        raise UserError(f"{folder} holds a {kind}; what can be trained are {' and '.join(KINDS)}")
    return index


def read_configs(folder: Path, index: Mapping[str, Any]) -> dict[str, dict[str, Any] | None]:
    """Read the configuration files of a pipeline's parts, as ``pipelines.configs_of`` gives those of a loaded one.

    Raises:
        UserError: where one is missing or does not parse.
    """
    configs: dict[str, dict[str, Any] | None] = {}
    for part in _parts(index):
        name = _class_of(part, index)
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        configs[part] = None if name is None else {**read_json(folder / part / file), "_class_name": name}
    return configs


def _class_of(part: str, index: Mapping[str, Any]) -> str | None:
    """Give the class of a part, or None where a pipeline of that kind, or this one, has no such part."""
    entry = index.get(part) if part in _parts(index) else None
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _parts(index: Mapping[str, Any]) -> tuple[str, ...]:
    return PARTS if index["_class_name"] == KINDS[1] else PARTS[:4]


def choose_weights(part: str, names: Collection[str], where: object) -> WeightFile:
    """Choose the weights of a part, those without a variant where there are such, as diffusers and transformers would.

    Args:
        part: of the pipeline, such as "unet".
        names: paths of files in the pipeline's folder.
        where: that folder or repository, for the message.

    Raises:
        UserError: where there are none in safetensors.
    """
    stem = f"{part}/{STEMS[part]}"
    found = []
    for name in names:
        for sharded, ending in (
            (False, r"(?:\.(\w+))?\.safetensors"),
            (True, r"\.safetensors\.index(?:\.(\w+))?\.json"),
        ):
            if match := re.fullmatch(re.escape(stem) + ending, name):
                found.append(WeightFile(name, match[1], sharded))
    if not found:
        pickles = sorted(name for name in names if re.fullmatch(rf"{part}/.*\.(bin|pt|pth|ckpt)", name))
        has = f" ({pickles[0]} is there and is not read, for it may run code)" if pickles else ""
        raise UserError(
            f"{where} has no {part} in safetensors{has}; needed is {stem}.safetensors, its shards or a variant such as"
            f" {stem}.fp16.safetensors"
        )
    preferred = STEMS[part] != "model"  # diffusers takes an index before a single file, transformers the other way
    known = len(VARIANTS)
    return min(found, key=lambda file: (
        VARIANTS.index(file.variant) if file.variant in VARIANTS else known, file.variant or "", file.sharded != preferred,
    ))  # fmt: skip


def weight_files(folder: Path) -> dict[str, WeightFile]:
    """Choose what is read of each part that has weights.

    Raises:
        UserError: where a part has none in safetensors.
    """
    index = read_index(folder)
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    return {part: choose_weights(part, names, folder) for part in STEMS if _class_of(part, index) is not None}


def loaded_files(folder: Path) -> list[Path]:
    """List every file of weights that ``load_pipeline`` reads, shards one by one.

    Raises:
        UserError: where one is missing.
    """
    files: list[Path] = []
    for chosen in weight_files(folder).values():
        path = folder / chosen.path
        names = set(read_json(path).get("weight_map", {}).values()) if chosen.sharded else {path.name}
        files += [path.with_name(name) for name in sorted(names)]
    if absent := [path for path in files if not path.is_file()]:
        raise UserError(f"{folder} lacks {absent[0].relative_to(folder)}; fetch it again")
    return files


def load_pipeline(folder: Path) -> Any:
    """Load the pipeline in a folder, in float32 on the CPU, without a safety checker.

    Raises:
        UserError: where it does not load.
    """
    import diffusers

    index = read_index(folder)
    kind, files = index["_class_name"], weight_files(folder)
    options = {"use_safetensors": True, "local_files_only": True}
    with no_progress_bars(), warnings.catch_warnings():
        # old settings that diffusers warns of at length and overrides, or that the policy's own sampler does not read
        warnings.simplefilter("ignore", FutureWarning)
        try:
            # a variant is asked for part by part: for a whole pipeline diffusers would prefer it to the plain files
            parts = {
                part: getattr(importlib.import_module(index[part][0]), index[part][1]).from_pretrained(
                    folder / part, variant=file.variant, **options
                )
                for part, file in files.items() if file.variant is not None
            }  # fmt: skip
            pipeline = getattr(diffusers, kind).from_pretrained(
                folder, **options, **parts,
                **({} if kind == KINDS[1] else WITHOUT_SAFETY_CHECKER),
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise UserError(f"{folder} does not load as a {kind}: {error}") from None
    for part in files:
        cast(getattr(pipeline, part), torch.float32)  # files in half precision are loaded as they are
    return pipeline


def hub_patterns(names: Collection[str], where: str) -> list[str]:
    """Say what to fetch of a Hub repository with these files: configurations, tokenizers, and the weights that are read.

    Raises:
        UserError: where a part has no weights in safetensors.
    """
    patterns = ["*.json", "*.txt"]
    for part in STEMS:
        if any(name.startswith(f"{part}/") for name in names):
            chosen = choose_weights(part, names, where)
            variant = f".{chosen.variant}" if chosen.variant else ""
            patterns.append(f"{part}/{STEMS[part]}{variant}-*-of-*.safetensors" if chosen.sharded else chosen.path)
    return patterns
