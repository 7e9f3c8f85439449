"""Where a run's numbers came from, session by session: who started it, who went on with it, and on what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

SESSIONS = "sessions.jsonl"
NOT_A_DIFFERENCE = ("started", "queries")  # a session's own place in the run


def read_json_bytes(raw: bytes) -> Any:
    """Parse JSON such that every text can be written as UTF-8: half a surrogate pair becomes a question mark."""
    try:
        return from_json(raw)  # several times as fast as json, which takes all that it refuses
    except ValueError:
        pass
    content = json.loads(raw)
    if b"\\ud" in raw.lower():
        content = json.loads(json.dumps(content, ensure_ascii=False).encode("utf-8", "replace"))
    return content


def parsed_line(line: bytes) -> dict[str, Any]:
    """Parse a line of JSON Lines; empty where it is no object."""
    try:
        content = read_json_bytes(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Read what each start and each resume of a run wrote down, oldest first.

    A record of schema 1 holds its first session in ``config.json``. A line that does not parse, such as the last one
    before a power cut, is left out: no number depends on it.
    """
    try:
        content = read_json_bytes((folder / "config.json").read_bytes())
        first = content.get("provenance")
    except (OSError, ValueError, AttributeError):
        first = None
    try:
        lines = (folder / SESSIONS).read_bytes().splitlines()
    except OSError:
        lines = []
    sessions = [{"queries": 0, **first}] if isinstance(first, dict) and first else []
    return sessions + [session for line in lines if (session := parsed_line(line))]


def session_differences(sessions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """List what changed between the sessions of a run.

    Returns:
        For each fact that changed its name, such as "versions.torch", and its values in order, such as
        "2.4.0, then 2.5.0 from query 512"; "-" stands for nothing recorded.
    """
    flat = [_flat({k: v for k, v in session.items() if k not in NOT_A_DIFFERENCE}) for session in sessions]
    differences = []
    for name in dict.fromkeys(name for facts in flat for name in facts):
        values = [facts.get(name, "-") for facts in flat]
        if len(set(values)) == 1:
            continue
        text = values[0]
        for session, before, value in zip(sessions[1:], values, values[1:], strict=False):
            if value != before:
                text += f", then {value} from query {session.get('queries', '?')}"
        differences.append((name, text))
    return differences


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested facts to dotted names and text."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
