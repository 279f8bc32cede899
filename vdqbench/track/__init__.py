"""Trackers publish finished records elsewhere; the record on disk is the truth, and no tracker can fail a run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vdqbench.record import Record


class Published(NamedTuple):
    """Whether publishing worked, and why not or where to."""

    ok: bool
    reason: str


def publish(record: Record, run_dir: str | Path, options: Mapping[str, Any]) -> Published:
    """Publish a finished record with the tracker of a `tracker` node, whose `_target_` gets the other options as keywords.

    Never raises: what goes wrong comes back as the reason.
    """
    try:
        keywords = dict(options)
        module, name = keywords.pop("_target_").rsplit(".", 1)
        return Published(*getattr(importlib.import_module(module), name)(record, Path(run_dir), **keywords))
    except Exception as error:
        return Published(False, f"{type(error).__name__}: {error}")
