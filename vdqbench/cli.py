"""The command line: the first word is a verb, or everything is overrides of one cell, a sweep or a table."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vdqbench.config import pin_threads
from vdqbench.errors import ConfigError, NotHere, nearest

USAGE = """\
vdqbench: the bench for post-training quantization of video diffusion models

  vdqbench table=quickstart                              a table: its cells, then the table
  vdqbench table=asq_tsq/table3 preset=mini              a paper's table on the matching mini
  vdqbench 'table=asq_tsq/*' preset=mini                 all tables of a paper
  vdqbench model=mini_stdit method=tsq bits=w4a8         one cell
  vdqbench method=cw_tw,asq,tsq bits=w8a8,w4a8           a sweep (-m is understood, and not needed)
  vdqbench ... hydra/launcher=parallel                   the same in several processes (local, parallel, cluster)
  vdqbench ... plan=true                                 what would run and what is there; runs nothing
  vdqbench ... --cfg                                     the composed configuration; runs nothing
  vdqbench ... --config-dir FOLDER                       your own configs besides the shipped ones

verbs:
"""


def verbs() -> dict[str, str]:
    """First line of the docstring of every module in `vdqbench.verbs`."""
    found = {}
    for file in sorted((Path(__file__).parent / "verbs").glob("[!_]*.py")):
        found[file.stem] = file.read_text().split('"""')[1].split("\n")[0]
    return found


def usage() -> str:
    """The help text."""
    lines = [f"  vdqbench {verb:<10} {what}" for verb, what in verbs().items()]
    return USAGE + "\n".join(lines) + "\n\nexit codes: 0 all done, 1 a cell failed, 2 wrong use\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 a cell failed, 2 wrong use."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    pin_threads()
    try:
        if set(arguments) <= {"-m", "--multirun"} or arguments[0] in ("-h", "--help", "help"):
            sys.stdout.write(usage())
            return 0
        if arguments[0] == "--version":
            from vdqbench import __version__

            sys.stdout.write(f"vdqbench {__version__}\n")
            return 0
        first = arguments[0]
        if "=" not in first and not first.startswith(("-", "+", "~")):
            if first not in verbs():
                raise ConfigError(f"{first} is neither a verb nor an override key=value{nearest(first, verbs())}")
            try:
                return importlib.import_module(f"vdqbench.verbs.{first}").main(arguments[1:])
            except SystemExit as stop:  # argparse has answered: help, or what is wrong
                return int(stop.code or 0)
        from vdqbench.sweep import main as sweep

        return sweep(arguments)
    except ConfigError as error:
        folders = _folders(arguments) if isinstance(error, NotHere) else []  # which the command that it names needs as well
        sys.stderr.write(f"vdqbench: {' '.join([str(error), *map(shlex.quote, folders)])}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("vdqbench: interrupted; what was finished is kept, the same command goes on from there\n")
        return 130


def _folders(arguments: Sequence[str]) -> list[str]:
    """The words of --config-dir among the arguments."""
    follows = [False, *(word == "--config-dir" for word in arguments)]
    return [word for word, after in zip(arguments, follows, strict=False) if after or word.split("=")[0] == "--config-dir"]
