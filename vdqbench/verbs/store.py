"""show the size of the store by kind; with --prune, delete what no record needs"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vdqbench.errors import ConfigError
from vdqbench.inspect.run import ARTEFACTS
from vdqbench.record import Record
from vdqbench.store import Store

VIDEOS = ("video", "trace", "features", "latents")
"""Kinds of artefacts that have the key of a video; latents are those of videos that are still to be decoded."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench store", description=__doc__)
    parser.add_argument("out", nargs="?", default="results", type=Path, help="the results folder (out=...)")
    parser.add_argument("--prune", action="store_true", help="delete artefacts that no record or inspected model below the folder needs")
    options = parser.parse_args(arguments)
    store = Store(options.out / "store")
    if not store.root.is_dir():
        raise ConfigError(f"{options.out} holds no store; run a cell first, or give the folder that was out=...")
    console = Console(highlight=False)
    if options.prune and store.busy():
        raise ConfigError(f"{options.out} is in use by a run, so nothing was deleted; prune when it has ended")
    if options.prune:
        deleted, freed = store.prune(needed(options.out))
        console.print(f"deleted {deleted} files, {freed / 1e6:.1f} MB")
    files, sizes = Counter[str](), Counter[str]()
    for kind, _, path in store.entries():
        if path.exists():
            files[kind] += 1
            sizes[kind] += path.stat().st_size
    table = Table("kind", "artefacts", "MB", title=str(store.root), title_justify="left")
    for kind in sorted(files):
        table.add_row(kind, str(files[kind]), f"{sizes[kind] / 1e6:.1f}")
    table.add_row("all", str(files.total()), f"{sizes.total() / 1e6:.1f}")
    console.print(table)
    return 0


def needed(out: Path) -> set[tuple[str, str]]:
    """(kind, key) of every artefact that some record or page of `inspect` was made from, references included.

    Raises:
        ConfigError: a record cannot be read, so that what it needs is not known.
    """
    found: set[tuple[str, str]] = set()
    for path in sorted((out / "runs").glob("*/*/record.json")):
        try:
            record = Record.load(path)
            keys = record.keys
            found |= {(kind, key) for key in (*keys["videos"], *keys["reference_videos"]) for kind in VIDEOS}
            found |= {("condition", key) for key in keys.get("conditions", [])}
            found |= {(kind, key) for key in keys.get("inputs", []) for kind in ("input", "features")}
            found |= {("scores", key) for key in keys["metrics"].values()}
            found |= {("report", keys["report"]), ("sqnr", keys.get("layers", ""))}
            statistics = keys.get("statistics") or keys["calibration"] or ""
            found |= {(kind, statistics) for kind in ("calibration", "calls", "timing")}
            found |= {("found", key) for key in (record.quantization or {}).get("found", [])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path} cannot be understood ({error}), so nothing was deleted; remove that run folder first") from error
    for path in sorted((out / "inspect").glob(f"*/{ARTEFACTS}")):
        try:
            found |= {(kind, key) for kind, key in json.loads(path.read_text(encoding="utf-8"))}
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path} cannot be understood ({error}), so nothing was deleted; remove that folder first") from error
    return found
