"""write all records below a results folder as one tidy table, a row for each cell, video and score: --to FILE.csv or .parquet"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vdqbench.errors import ConfigError


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench records", description=__doc__)
    parser.add_argument("out", nargs="?", default="results", help="the results folder, also written out=FOLDER; results when left out")
    parser.add_argument("--to", required=True, type=Path, help="the file: .csv, or .parquet with the package pyarrow")
    options = parser.parse_args(arguments)
    from vdqbench.report.frame import write
    from vdqbench.report.plain import load_all

    out = Path(options.out.removeprefix("out=")).expanduser()
    records = load_all(out)
    if not records:
        raise ConfigError(f"{out} holds no records; run a cell first, or give the folder that was out=...")
    path = write(records, options.to)
    console = Console(highlight=False)
    console.print(f"wrote {len(records)} {'record' if len(records) == 1 else 'records'} to {path}", markup=False, soft_wrap=True)
    return 0
