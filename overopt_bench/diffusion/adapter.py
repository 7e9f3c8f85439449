"""The file that holds a run's LoRA: plain diffusers reads it with ``pipeline.load_lora_weights(folder)``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from overopt_bench.errors import UserError
from overopt_bench.files import atomic

if TYPE_CHECKING:
    from torch import Tensor

LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")  # every attention of the U-Net, as in trl's DDPO
PREFIX = "unet."  # diffusers' name of the part that the weights belong to


def write_lora(folder: Path, weights: dict[str, Tensor], *, rank: int, alpha: int, targets: Sequence[str]) -> None:
    """Write peft's state dict of a U-Net's LoRA.

    Rank and alpha go into the file's header, from which diffusers takes the scale alpha / rank; without them it would
    take 1.

    Raises:
        OSError: where it cannot be written; a file that was there before is then left as it was.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from diffusers.utils import convert_state_dict_to_diffusers
    from safetensors.torch import save

    layers = {PREFIX + key: value.contiguous() for key, value in convert_state_dict_to_diffusers(weights).items()}
    facts = {"r": rank, "lora_alpha": alpha, "target_modules": list(targets), "rank_pattern": {}, "alpha_pattern": {}}
    # a single entry, for safetensors writes several in any order; bytes, for its versions differ in the permissions and the
    # durability of the files that they write themselves
    header = {LORA_ADAPTER_METADATA_KEY: json.dumps({PREFIX + key: value for key, value in facts.items()})}
    content = save(layers, header)
    folder.mkdir(exist_ok=True)
    with atomic(adapter_file(folder)) as temporary:
        temporary.write_bytes(content)


def read_lora(folder: Path) -> dict[str, Tensor]:
    """Peft's state dict of the LoRA in ``folder``, on the CPU.

    Raises:
        UserError: where there is none, or its file is damaged.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = adapter_file(folder)
    try:
        found = load(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no {path.name}; a run saves it at its first evaluation") from None
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); copy it again from its run") from None
    return dict(convert_unet_state_dict_to_peft({key.removeprefix(PREFIX): value for key, value in found.items()}))


def adapter_file(folder: Path) -> Path:
    """Where the LoRA stands in ``folder``."""
    from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

    return folder.joinpath(LORA_WEIGHT_NAME_SAFE)


def finite(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights as they are.

    Raises:
        FloatingPointError: where one of them is NaN or infinite.
    """
    if bad := [name for name, weight in weights.items() if not bool(weight.isfinite().all())]:
        raise FloatingPointError(f"{len(bad)} of {len(weights)} tensors of the adapter are not finite, first {bad[0]}")
    return weights
