"""Where published weights are found: a local folder, the Hub's cache, or the Hub at a pinned revision.

A repository of the Hub is looked for as ``FOLDER/<last part of its name>`` in a user's ``--weights FOLDER``, which is
what ``hf download REPO --local-dir FOLDER/NAME`` leaves. Nothing is unpickled beyond ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from overopt_bench.errors import UserError
from overopt_bench.lazy import torch
from overopt_bench.shell import command_line

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCK = 1 << 24


@dataclass(frozen=True)
class Repo:
    """Files of one Hub repository at one revision.

    Attributes:
        id: ``owner/name``.
        revision: the full commit.
        licence: of the weights, as the card says.
        files: path in the repository to size in bytes, for what is really needed.
        sha256: of those files whose published hash is known.
    """

    id: str
    revision: str
    licence: str
    files: Mapping[str, int] = field(hash=False)
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        """Give the last part of the id, which is its folder in a user's ``--weights``."""
        return self.id.rsplit("/", 1)[-1]

    def command(self, folder: Path | None = None) -> str:
        """Give the shell command that fetches the files, into the Hub's cache or into ``folder/name``."""
        command = ["hf", "download", self.id, *self.files, "--revision", self.revision]
        return command_line(command + (["--local-dir", str(folder / self.name)] if folder else []))


@dataclass(frozen=True)
class Weights:
    """A finder of repositories' files; ``folder`` is the user's ``--weights``, or None for the Hub and its cache."""

    folder: Path | None = None

    def find(self, repo: Repo, file: str) -> Path | None:
        """Give the file where it is on this machine already; the network is never asked."""
        from huggingface_hub import try_to_load_from_cache

        if self.folder is not None:
            path = self.folder / repo.name / file
            return path if path.is_file() else None
        cached = try_to_load_from_cache(repo.id, file, revision=repo.revision)
        return Path(cached) if isinstance(cached, str) else None

    def absent(self, repo: Repo) -> list[str]:
        """List the files of a repository that are not on this machine."""
        return [file for file in repo.files if self.find(repo, file) is None]

    def path(self, repo: Repo, file: str) -> Path:
        """Give the file, fetched from the Hub where it is neither in the folder nor in the cache.

        Raises:
            UserError: where it is missing from the folder, or the Hub cannot be reached; with the command to run.
        """
        found = self.find(repo, file)
        if found is not None:
            return found
        if self.folder is not None:
            raise UserError(f"{self.folder / repo.name} lacks {file}; get it: {repo.command(self.folder)}")
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(repo.id, file, revision=repo.revision))
        except Exception as error:  # offline mode, no network, no access: the Hub's client has an exception for each
            raise UserError(
                f"{repo.id} lacks {file} here and the Hub gave none ({type(error).__name__}); where there is a network:"
                f" {repo.command()}; or give a local folder with --weights"
            ) from None

    def fetch(self, repo: Repo) -> Path:
        """Make sure that all files of a repository are here, and give the folder that holds them.

        Raises:
            UserError: as ``path``.
        """
        files = list(repo.files)
        paths = [self.path(repo, file) for file in files]
        return paths[0].parents[files[0].count("/")]


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            sha.update(block)
    return sha.hexdigest()


def digest(path: Path) -> str:
    """Compute the SHA-256 of a file. The Hub's cache names large files by theirs, so those are not read again."""
    name = Path(os.path.realpath(path)).name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return name
    facts = path.stat()
    return _digest(path, facts.st_size, facts.st_mtime_ns)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` or torch file (there also under ``state_dict``), unpickling nothing else.

    Raises:
        UserError: where it does not load.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files raise almost anything
        raise UserError(f"{path} cannot be read as weights ({type(error).__name__}); fetch it again") from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    if others := [key for key, value in content.items() if not isinstance(value, torch.Tensor)]:
        raise UserError(f"{path} is no state dict: {others[0]!r} is no tensor")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration beside weights.

    Raises:
        UserError: where it does not parse to a mapping.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no mapping; fetch it again")
    return content


@contextmanager
def refusing(path: Path, what: str) -> Iterator[None]:
    """Turn whatever goes wrong in building a network from a file's sizes into a ``UserError``: the file is not ``what``."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{path} is not {what}: {reason}") from None


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict whose keys and shapes must all fit.

    Raises:
        UserError: with the first keys that are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [
        f"{k} {tuple(state[k].shape)}, not {tuple(own[k].shape)}"
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    wrong = [
        f"{what} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for what, keys in (("lacks", missing), ("has besides", unexpected), ("has shapes", shapes)) if keys
    ]  # fmt: skip
    if wrong:
        raise UserError(f"{path} is not the checkpoint of this model: it {'; '.join(wrong)}")
    module.load_state_dict(dict(state))
