"""quantize one group of layers at a time and score it: table, heat map, and mixed precision under budget=BITS"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import width
from vdqbench.verbs._words import split

HELP = """\
vdqbench sensitivity: quantize one group of layers at a time, the rest in floating point, and score it on the calibration prompts

  vdqbench sensitivity model=mini_stdit method=dynamic bits=w4a8 group=role,block,range ranges=4
  vdqbench sensitivity model=mini_stdit method=dynamic bits=w4a8 budget=5            also bits for each layer and range

  by=NAME          output_error (when left out), temporal_error, guidance_error: of the denoiser, where calls of the calibration
                   are repeated (minutes); proxies: one of them for each kind of layer; a score such as clipsim, of videos (a cell
                   for each group: hours); metrics: a score for each kind of layer
  group=A,B,...    what tells groups apart: kind, role, block, layer, range (role,block,range when left out)
  ranges=4         equal parts of the steps
  moments=2        calls that are repeated in each range
  budget=BITS      average bits of weights to give out; budget.activation=BITS: of activations
  candidates=4,6,8 widths that are given out
  allocation=NAME  greedy (when left out): what saves most loss per bit; decoupled (ViDiT-Q): within the layers of each judge
  judge.text=SCORE judge.time=SCORE judge.quality=SCORE    of by=metrics: of cross-attention, temporal attention, all others
  name=NAME        of the folder OUT/sensitivity/NAME that table.csv, table.md, heatmap.png and sites.yaml are written to

  All other words are overrides of the cell.

exit codes: 0 every group has a result, 1 some have none, 2 wrong use
"""
OWN: dict[str, type] = {
    **dict.fromkeys(("by", "group", "candidates", "allocation", "name", "judge.text", "judge.time", "judge.quality"), str),
    **dict.fromkeys(("ranges", "moments"), int),
    **dict.fromkeys(("budget", "budget.activation"), float),
}
SHOWN = 10


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    own, overrides, folders = split(arguments, OWN, "sensitivity")
    from vdqbench.sensitivity.groups import Request
    from vdqbench.sensitivity.run import measure
    from vdqbench.sensitivity.tables import ranked

    request = Request(overrides, folders, **_options(own))
    try:
        found = measure(request)
    except Unsupported as error:
        raise ConfigError(str(error)) from error
    console = Console(width=width())
    table = Table(*request.labels, "range", "judge", "loss", box=None)
    for row, loss in ranked(found.rows)[:SHOWN]:
        table.add_row(*(row.group.labels[key] for key in request.labels), str(row.range), row.judge, f"{loss:.4g}")
    console.print(table)
    if found.mixed is not None:
        mixed = found.mixed
        bits = f"{mixed.weight_bits:.3f} weight bits ({mixed.stored_bits:.3f} stored), {mixed.activation_bits:.3f} activation bits"
        errors = "".join(f"\noutput_error {error:.4g}: {name}" for name, error in mixed.beside.items())
        console.print(f"{bits}{errors}\n{mixed.command}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"wrote {found.folder}", markup=False, highlight=False, soft_wrap=True)
    lost = [row for row in found.rows if row.loss is None]
    if lost:
        console.print(f"{len(lost)} of {len(found.rows)} rows have no result: {lost[0].reason}", markup=False, highlight=False)
    return int(bool(lost))


def _options(own: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a Request."""
    options = {key: value for key, value in own.items() if "." not in key}
    options["activation_budget"] = own.get("budget.activation")
    options["judges"] = {key.removeprefix("judge."): value for key, value in own.items() if key.startswith("judge.")}
    if "group" in own:
        options["group"] = tuple(own["group"].split(","))
    if "candidates" in own:
        try:
            options["candidates"] = tuple(sorted(int(bits) for bits in own["candidates"].split(",")))
        except ValueError:
            raise ConfigError(f"candidates={own['candidates']} must be whole numbers, such as 4,6,8") from None
    return options
