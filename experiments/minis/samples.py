"""Draw results/samples.png: 16 prompts, real next to generated next to W8A8 next to W4A4, from the videos of the quickstart.

vdqbench table=quickstart && python experiments/minis/samples.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from vdqbench import generate, shapes
from vdqbench.compose import Composer
from vdqbench.config import Cell
from vdqbench.report.grid import write_contact_sheet
from vdqbench.store import Store

COLUMNS = {"FP": ["method=fp"], "ASQ W8A8": ["method=asq", "bits=w8a8"], "ASQ W4A4": ["method=asq", "bits=w4a4"]}


def main(out: str = "results") -> None:
    composer, store = Composer(), Store(Path(out) / "store")
    cells = {label: Cell.from_config(composer.plain([f"out={out}", *overrides])) for label, overrides in COLUMNS.items()}
    captions = [text for _, text, _ in cells["FP"].samples]
    real = shapes.render([shapes.Scene.from_caption(caption) for caption in captions], 11, np.arange(len(captions)))
    columns = {"real": list(real), **{label: generate.load(cell, store) for label, cell in cells.items()}}
    write_contact_sheet(Path(out) / "samples.png", columns, captions)


if __name__ == "__main__":
    main(*sys.argv[1:])
