"""draw what the papers argue from, for any model: activations, features of the timestep, weights, changes of the output"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import width
from vdqbench.verbs._words import split

HELP = """\
vdqbench inspect: measure and draw what the papers argue from, on the unquantized model and the calibration prompts

  vdqbench inspect model=mini_stdit
  vdqbench inspect model=mini_stdit 'layers=temporal_attn.*,*.mlp.fc1'

  layers=A,B,...   patterns of names or roles of layers whose inputs and weights are looked at (all when left out)
  name=NAME        of the folder OUT/inspect/NAME that page.md, the figures (png) and their numbers (csv) are written to

  All other words are overrides: of model, sampler, calibration, out, device. The calibration is the one that all methods share.

exit codes: 0 written, 2 wrong use
"""
OWN: dict[str, type] = {"layers": str, "name": str}


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    own, overrides, folders = split(arguments, OWN, "inspect")
    from vdqbench.inspect.run import Request, inspect

    try:
        found = inspect(Request(overrides, folders, **own))
    except Unsupported as error:
        raise ConfigError(str(error)) from error
    console = Console(width=width())
    table = Table("phenomenon", "paper", "value", "shown if", "verdict", box=None)
    for one in found.findings:
        value = "" if one.value is None else f"{one.value:.3g}"
        style = "bold" if one.verdict == "shown" else None
        table.add_row(one.phenomenon.title, one.phenomenon.paper, value, one.phenomenon.bound, one.verdict, style=style)
    console.print(table)
    console.print(f"wrote {found.folder}", markup=False, highlight=False, soft_wrap=True)
    return 0
