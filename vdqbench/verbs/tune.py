"""choose a parameter of a method by a grid on the calibration prompts: over=method.KEY values=A,B,... by=SCORE"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.progress import width
from vdqbench.verbs._words import split

HELP = """\
vdqbench tune: choose a parameter of a method by a grid, on the calibration prompts

  vdqbench tune model=mini_stdit method=asq bits=w4a8 over=method.transform.smooth.alpha values=0.1,0.3,0.5,0.7 by=output_error

  over=method.KEY  the parameter: any option of the method
  values=A,B,...   what is tried, a list as in a sweep
  by=NAME          output_error (when left out), temporal_error or guidance_error: of the denoiser, where calls of the calibration
                   are repeated (seconds a value); or a score such as clipsim, of videos of the calibration prompts
  moments=8        calls that are repeated
  name=NAME        of the method that is written, METHOD_tuned when left out

  All other words are overrides of the cell. The choice is written to OUT/tuned/method/NAME.yaml; the command that uses it is shown.

exit codes: 0 a value was chosen, 1 none could be judged, 2 wrong use
"""
OWN: dict[str, type] = {"over": str, "values": str, "by": str, "moments": int, "name": str}


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    own, overrides, folders = split(arguments, OWN, "tune")
    for key, example in (("over", "over=method.transform.smooth.alpha"), ("values", "values=0.1,0.3,0.5")):
        if key not in own:
            raise ConfigError(f"{key}= is missing: add {example}")
    from vdqbench.tune import Request, tune

    try:
        tuned = tune(Request(overrides, folders, **own))
    except Unsupported as error:
        raise ConfigError(str(error)) from error
    table = Table(own["over"], own.get("by", "output_error"), "", box=None)
    for row in tuned.rows:
        note = "chosen" if row is tuned.best else row.reason or ""
        table.add_row(row.value, "" if row.result is None else f"{row.result:.6g}", note, style="bold" if row is tuned.best else None)
    console = Console(width=width())
    console.print(table)
    if tuned.path is None:
        console.print("no value could be judged, so nothing was written")
        return 1
    console.print(f"wrote {tuned.path}\n{tuned.command}", markup=False, highlight=False, soft_wrap=True)
    return 0
