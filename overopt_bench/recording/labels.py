"""What a run is called among others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def label_of(config: Mapping[str, Any]) -> str:
    """Name the algorithm of a recorded configuration, with its mitigations and the tag where there are any.

    Tags stand for other settings. Seeds of one label are runs of one thing.
    """
    name = " + ".join([str(config["algo"]), *config.get("mitigation", ())])
    return name + (f" [{config['tag']}]" if config.get("tag") else "")
