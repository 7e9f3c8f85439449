"""Whether a run folder holds the run that is asked for: the same configuration, on the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from overopt_bench.config import RunConfig
from overopt_bench.errors import UserError
from overopt_bench.recording.sessions import read_sessions


def read_config(run: Path) -> RunConfig:
    """The configuration of a run folder.

    Raises:
        UserError: where the folder is no run.
    """
    try:
        content = json.loads((run / "config.json").read_text(encoding="utf-8"))
        return RunConfig(**content["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run} is not a run folder: its config.json cannot be read ({type(error).__name__})") from None


def refuse_another_run(folder: Path, config: RunConfig, provenance: Mapping[str, Any]) -> None:
    """Make sure that a run folder was made by this configuration and with these weights.

    Args:
        folder: a run folder with its ``config.json``.
        config: the configuration that is asked for.
        provenance: where the numbers of this session would come from.

    Raises:
        UserError: which shows the difference, or says that the file is damaged.
    """
    refuse_another_configuration(folder, config)
    _refuse_other_weights(folder, provenance)


def refuse_another_configuration(folder: Path, config: RunConfig) -> None:
    """Make sure that a folder holds no run of another configuration; needs neither weights nor torch.

    Args:
        folder: a run folder, or a path where there is nothing yet.
        config: the configuration that is asked for.

    Raises:
        UserError: which shows the difference, or says that the file is damaged.
    """
    if (difference := other_configuration(folder, config)) is not None:
        raise UserError(f"{folder} was made by another configuration ({difference}); use another --tag or --out")


def other_configuration(folder: Path, config: RunConfig) -> str | None:
    """Tell how the configuration that made a folder differs from another; needs neither weights nor torch.

    Args:
        folder: a run folder, or a path where there is nothing yet.
        config: the configuration that is asked for.

    Returns:
        Each setting that differs, "there" and "asked"; None where nothing does or nothing is there.

    Raises:
        UserError: where the file is damaged.
    """
    path = folder / "config.json"
    if not path.exists():
        return None
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        old = dict(recorded["config"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete the folder or use another --tag") from None
    if recorded.get("config_hash") == config.config_hash():
        return None
    new = config.model_dump(mode="json")
    flat_old, flat_new = ({**c, **{f"params.{k}": v for k, v in c["params"].items()}} for c in (old, new))
    return "; ".join(
        f"{k}: {_shortened(flat_old.get(k))} there, {_shortened(flat_new.get(k))} asked"
        for k in sorted({*flat_old, *flat_new} - {"params"}) if flat_old.get(k) != flat_new.get(k)
    )  # fmt: skip


def _refuse_other_weights(folder: Path, new: Mapping[str, Any]) -> None:
    """Refuse other weights: the same settings with them would be another experiment."""
    sessions = read_sessions(folder)
    for kind in ("weights", "rewards"):
        before = {name: value for session in sessions for name, value in session.get(kind, {}).items()}
        now = new.get(kind, {})
        # a part that is read from files of another name is other weights too
        parts = {name.rpartition("/")[0] for name in now if "/" in name}
        gone = {name for name in before.keys() - now.keys() if name.rpartition("/")[0] in parts}
        if other := [name for name in before if name in gone or (name in now and before[name] != now[name])]:
            raise UserError(f"{folder} was made with other weights of {', '.join(other)}; use another --tag or --out")


def _shortened(value: object) -> str:
    """Return a setting as a message shows it: a list of a hundred thousand prompts by its beginning."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
