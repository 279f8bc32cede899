"""show all records below a results folder in one overview, and write it as CSV"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from vdqbench.errors import ConfigError
from vdqbench.progress import width


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="vdqbench report", description=__doc__)
    parser.add_argument("out", nargs="?", default="results", type=Path, help="the results folder (out=...)")
    options = parser.parse_args(arguments)
    from vdqbench.report.plain import load_all, overview, summary, write_csv

    records = load_all(options.out)
    if not records:
        raise ConfigError(f"{options.out} holds no records; run a cell first, or give the folder that was out=...")
    console = Console(width=width())
    console.print(overview(records))
    console.print(summary(records), markup=False, highlight=False)
    console.print(f"wrote {write_csv(records, options.out / 'report.csv')}", markup=False, highlight=False, soft_wrap=True)
    return 0
