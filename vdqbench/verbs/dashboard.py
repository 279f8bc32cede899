"""build the comparison workspace and report on Weights & Biases: entity=TEAM project=NAME, or save=FILE.json without a login"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vdqbench.errors import ConfigError
from vdqbench.store import write_atomic
from vdqbench.verbs._words import split

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    from vdqbench.track.facts import Facts

HELP = """\
vdqbench dashboard: build the comparison workspace and report on Weights & Biases, as code

  vdqbench dashboard entity=TEAM project=NAME              make both on the server
  vdqbench dashboard save=dashboard.json                   write both as JSON, without a login and without the network

  out=FOLDER       the results folder whose records say which scores, costs, models and reference there are; results when left out
  scores=A,B,...   panels for these scores only, or without records
  group=NAME       runs of one table or sweep only, such as asq_tsq/table3
  project=NAME     vdqbench when left out; entity=TEAM your own when left out

  Needs the package wandb-workspaces: pip install 'vdqbench[wandb]'

exit codes: 0 made or written, 2 wrong use
"""
OWN: dict[str, type] = dict.fromkeys(("save", "entity", "project", "out", "scores", "group"), str)


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    own, overrides, _ = split(arguments, OWN, "dashboard")
    if overrides:
        raise ConfigError(f"{overrides[0]} is not an option of vdqbench dashboard (expected one of {', '.join(OWN)})")
    try:
        from vdqbench.track import dashboard
    except ImportError as error:
        raise ConfigError(f"vdqbench dashboard needs wandb-workspaces ({error}); pip install 'vdqbench[wandb]'") from error
    from rich.console import Console

    out, only = Path(own.get("out", "results")).expanduser(), [name for name in own.get("scores", "").split(",") if name]
    facts = _facts(out)
    if not facts and not only:
        raise ConfigError(f"{out} holds no records that say which scores there are; give out=FOLDER, or scores=clipsim,clip_temp")
    subject = dashboard.Subject.of(facts, only)
    entity, project, group = own.get("entity", ""), own.get("project", "vdqbench"), own.get("group")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    if "save" in own:
        file = Path(own["save"]).expanduser()
        text = dashboard.to_json(dashboard.workspace(subject, entity, project, group), dashboard.report(subject, entity, project, group))
        write_atomic(file, lambda path: path.write_text(text, encoding="utf-8"))
        console.print(f"wrote {file}")
        return 0
    entity = _logged_in(entity)
    for made in (dashboard.workspace(subject, entity, project, group), dashboard.report(subject, entity, project, group)):
        console.print(_save(made))
    return 0


def _facts(out: Path) -> list[Facts]:
    """Of all records of a results folder; one that cannot be read says nothing."""
    from vdqbench.track.facts import Facts

    found = []
    for file in sorted(out.glob("runs/*/*/record.json")):
        try:
            found.append(Facts.of(file.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _logged_in(entity: str) -> str:
    """The entity, by default the user's own.

    Raises:
        ConfigError: there is no login, or the server does not know it.
    """
    from vdqbench.track.wandb import chosen_mode

    if chosen_mode("auto", os.environ) != "online":
        raise ConfigError("there is no login to Weights & Biases: run `wandb login`, or write both with save=FILE.json")
    import wandb

    try:
        return entity or str(wandb.Api().default_entity)
    except Exception as error:
        raise ConfigError(f"the server did not say who is logged in ({type(error).__name__}: {error}); give entity=TEAM") from error


def _save(made: ws.Workspace | wr.Report) -> str:
    """Make it on the server; returns its address."""
    try:
        made.save()
        return str(made.url)
    except Exception as error:
        what = type(made).__name__.lower()
        raise ConfigError(
            f"the {what} could not be made ({type(error).__name__}: {' '.join(str(error).split())}); save=FILE.json works"
        ) from error
