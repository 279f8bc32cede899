"""send records and tables to Weights & Biases, for the first time or again: [RUN ...] [table=NAME] [tracker.mode=online]"""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, nearest

HELP = """\
vdqbench publish: send records and tables to Weights & Biases, for the first time or again

  vdqbench publish                                         every record below results, and the tables that have one of them
  vdqbench publish 'asq-*' ee9bd0a974aff6ab                some: run folders, their names, keys, or patterns of these
  vdqbench publish table=asq_tsq/table3 preset=mini        a table, filled from the records that there are, and its cells
  vdqbench publish tracker.mode=online tracker.project=ptq other options than those of conf/tracker/wandb.yaml
  vdqbench publish plan=true                               what has been published, and what has not, and why; sends nothing

  out=FOLDER       results when left out

  A run has the key of its cell for an id, so what was published before is updated. Without a login runs are kept offline, in the folder
  wandb of each run folder; after `wandb login` the same command sends them, and so does `wandb sync` of those folders.

exit codes: 0 everything was published, 1 something was not (each is named), 2 wrong use
"""
CONFIG = ("tracker", "out", "quiet", "plan")


@dataclass(frozen=True)
class Request:
    """What is sent, from which results folder, and with which options of the tracker."""

    out: Path
    paths: list[Path]
    options: dict[str, Any]
    plan: bool
    quiet: bool

    @classmethod
    def parse(cls, words: Sequence[str]) -> Request:
        """Raises ConfigError for wrong use, or if there is nothing to send."""
        from vdqbench.compose import Composer
        from vdqbench.sweep import Arguments

        arguments = Arguments.parse(words)
        if arguments.show_config:
            raise ConfigError("--cfg belongs to cells; leave it out to publish")
        overrides = [word for word in arguments.overrides if "=" in word]
        names = [word for word in arguments.overrides if "=" not in word]
        if not any(word.startswith("tracker=") for word in overrides):
            overrides.append("tracker=wandb")
        control = [word for word in overrides if word.partition("=")[0].lstrip("+").split(".")[0] in CONFIG]
        config = Composer(arguments.folders).plain(control)
        if config["tracker"]["_target_"] != "vdqbench.track.wandb.Wandb":
            raise ConfigError("tracker= of vdqbench publish must be one for Weights & Biases; leave it out for tracker=wandb")
        for key in ("plan", "quiet"):
            if not isinstance(config[key], bool):
                raise ConfigError(f"{key}={config[key]} must be true or false")
        out = Path(config["out"]).expanduser()
        if any(word.startswith("table=") for word in overrides):
            if names:
                raise ConfigError(f"{names[0]}: a table names its own cells; give either table= or run folders")
            given = [word for folder in arguments.folders for word in ("--config-dir", folder)]
            paths = _of_tables([*given, *(word for word in overrides if not word.startswith("plan="))])
        else:
            for word in overrides:
                if word not in control:
                    root = word.partition("=")[0]
                    raise ConfigError(
                        f"{word} is not an option of vdqbench publish{nearest(root, (*CONFIG, 'table'))}; cells go by their names"
                    )
            paths = _of_records(out, names)
        options = {name: value for name, value in config["tracker"].items() if name != "_target_"}
        return cls(out.resolve(), [path.resolve() for path in paths], options, config["plan"], config["quiet"])


def main(arguments: Sequence[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        sys.stdout.write(HELP)
        return 0
    request = Request.parse(arguments)
    from vdqbench.track.background import empty
    from vdqbench.track.wandb import Wandb, account, mark

    try:
        tracker = Wandb(**request.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    out, paths = request.out, request.paths
    if not request.plan:
        if not tracker.queue(out, paths, again=True):
            raise ConfigError("tracker.mode=disabled publishes nothing; choose auto, online or offline (WANDB_MODE counts for auto)")
        _send(empty(out, wait=True), set(paths), request.quiet)
    from rich.console import Console

    from vdqbench.progress import width

    console = Console(width=width(), markup=False, highlight=False, soft_wrap=True)
    notes = {path: mark(out, path) for path in paths}
    for path, note in notes.items():
        if request.plan or note is None or not note["ok"]:
            what = path.relative_to(out)
            console.print(f"{what}: never published" if note is None else f"{what}: {note['finished']} {note['reason']}")
    console.print(account(out, paths).reason)
    return int(not request.plan and any(note is None or not note["ok"] for note in notes.values()))


def _send(results: Any, wanted: set[Path], quiet: bool) -> None:
    """Empty the queue, which may hold what others have put there."""
    from vdqbench.progress import Progress

    with Progress(quiet=quiet).stage("publish", len(wanted)) as advance:
        for path, _ in results:
            advance(int(path in wanted))


def _of_records(out: Path, names: Sequence[str]) -> list[Path]:
    """Run folders, all or those that are named, and for all the tables that have one of them."""
    folders = sorted(file.parent for file in out.glob("runs/*/*/record.json"))
    if not folders:
        raise ConfigError(f"{out} holds no records; run a cell first, or give the folder that was out=...")
    if not names:
        keys = {folder.name.rpartition("-")[2] for folder in folders}
        return [*folders, *(path for path in sorted((out / "tables").rglob("*.json")) if _keys(path) & keys)]
    chosen: dict[Path, None] = {}
    for name in names:
        found = [folder for folder in folders if _named(folder, name)]
        if not found:
            raise ConfigError(f"{name} is no record below {out}{nearest(name, {folder.name.rpartition('-')[0] for folder in folders})}")
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _named(folder: Path, name: str) -> bool:
    """Whether a word means this run folder: its path, `model/name`, its name, with or without the key, the key, or a pattern of these."""
    if Path(name).resolve() in (folder.resolve(), folder.resolve() / "record.json"):
        return True
    label, _, key = folder.name.rpartition("-")
    return any(fnmatch.fnmatchcase(known, name) for known in (folder.name, f"{folder.parent.name}/{folder.name}", label, key))


def _keys(path: Path) -> set[str]:
    """Keys of the cells of a finished table; none if it is another file."""
    try:
        lines = json.loads(path.read_text(encoding="utf-8"))["lines"]
        return {line["key"] for line in lines if line["key"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _of_tables(words: Sequence[str]) -> list[Path]:
    """Run folders of the cells that have been run, and the tables filled from them and written anew."""
    from vdqbench.record import Record
    from vdqbench.report import render
    from vdqbench.report.table import rows
    from vdqbench.sweep import Study

    study = Study.of(words)
    waiting, paths, tables = study.cells(), [], []
    for table in study.tables:
        count = len(table.cells(study.preset))
        records: list[Record | None] = []
        for cell in waiting[:count]:
            try:
                records.append(Record.load(cell.run_dir / "record.json"))
                paths.append(cell.run_dir)
            except (OSError, ValueError, KeyError, TypeError):
                records.append(None)
        if not any(records):
            raise ConfigError(f"table={table.name} has no cell that was run; run it first: vdqbench {' '.join(words)}")
        written = render.write_all(rows(table, records, preset=study.preset), waiting[0].out / "tables")
        tables += [path for path in written if path.suffix == ".json"]
        del waiting[:count]
    return [*dict.fromkeys(paths), *tables]
