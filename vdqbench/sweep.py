"""From overrides to results: expand, validate every cell, run what is missing, show what came out."""

from __future__ import annotations

import datetime
import fnmatch
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.compose import Composer, expand
from vdqbench.config import Cell
from vdqbench.errors import ConfigError, nearest
from vdqbench.progress import Progress
from vdqbench.record import Record
from vdqbench.runner import is_done, metric_keys, new_record, task
from vdqbench.score import check, try_out

if TYPE_CHECKING:
    from vdqbench.report.spec import Table

CONTROL = ("table", "preset", "plan")


@dataclass
class Arguments:
    """The words of the command line, sorted."""

    overrides: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    show_config: bool = False

    @classmethod
    def parse(cls, words: Sequence[str]) -> Arguments:
        """Raises ConfigError for an unknown flag."""
        parsed, rest = cls(), list(words)
        while rest:
            word = rest.pop(0)
            if word in ("-m", "--multirun"):
                continue
            if word == "--cfg":
                parsed.show_config = True
            elif word == "--config-dir" or word.startswith("--config-dir="):
                _, given, folder = word.partition("=")
                if not given and not rest:
                    raise ConfigError("--config-dir needs a folder")
                parsed.folders.append(folder if given else rest.pop(0))
            elif word.startswith("-"):
                raise ConfigError(f"{word} is not a flag (known: -m, --cfg, --config-dir FOLDER, --help, --version)")
            else:
                parsed.overrides.append(word)
        return parsed

    def control(self) -> list[str]:
        """Overrides that say what to do with cells rather than what they are."""
        return [o for o in self.overrides if o.lstrip("+").split("=")[0] in CONTROL]

    def of_cells(self) -> list[str]:
        """The other overrides."""
        return [o for o in self.overrides if o not in self.control()]


@dataclass
class Study:
    """What the command line asks for, resolved and validated: cells, each with its overrides, and how to lay them out.

    The jobs are those of the tables in turn, as many for each as it has cells.
    """

    composer: Composer
    arguments: Arguments
    jobs: list[list[str]]
    tables: list[Table] = field(default_factory=list)
    preset: str | None = None
    plan: bool = False

    @classmethod
    def of(cls, words: Sequence[str]) -> Study:
        """Raises ConfigError for wrong use; the cells themselves are validated by `cells`."""
        arguments = Arguments.parse(words)
        composer = Composer(arguments.folders)
        control = arguments.control()
        paths = [o for o in arguments.overrides if o.startswith("hydra.searchpath")]
        head: dict[str, Any] = {"preset": None, "plan": False}
        tables, jobs = [], []
        for words_of_one in _each_table(composer, control):
            head = composer.plain([*words_of_one, *paths]) if words_of_one else head
            table = _table(head)
            rows = [[f"study={table.name}", *row] for row in table.cells(head["preset"])] if table else [[]]
            added = [cell for row in rows for cell in expand([*row, *arguments.of_cells()])]
            if table and len(added) != len(rows):
                raise ConfigError(f"table={table.name} has its own rows, so an override of it takes one value, not a list")
            tables += [table] if table else []
            jobs += added if table or len(added) == 1 else [[*_sweep(arguments), *job] for job in added]
        if not isinstance(head["plan"], bool):
            raise ConfigError(f"plan={head['plan']} must be true or false")
        return cls(composer, arguments, jobs, tables, head["preset"], head["plan"])

    def cells(self, here: bool = True) -> list[Cell]:
        """Raises ConfigError for the first cell that cannot be run as asked; weights must be on this machine, if it is to be run here."""
        cells = [Cell.from_config(self.composer.plain(job), here) for job in self.jobs]
        for cell in cells:
            check(cell.config.get("metric") or {})
        return cells


def run(words: Sequence[str]) -> list[Record]:
    """Records of the cells that the overrides name, in order."""
    study = Study.of(words)
    cells = study.cells()
    records = run_all(study.composer, study.jobs, cells, study.arguments.overrides)
    _publish(cells, [])
    return records


def main(words: Sequence[str]) -> int:
    """Run the cells that the command line names and show what came out; returns the exit code."""
    study = Study.of(words)
    if study.arguments.show_config:
        return _show(study)
    cells = study.cells(here=not study.plan)
    if study.plan:
        from vdqbench.plan import show

        return show(cells)
    return _finish(cells, run_all(study.composer, study.jobs, cells, study.arguments.overrides), study)


def run_all(composer: Composer, jobs: Sequence[Sequence[str]], cells: Sequence[Cell], overrides: Sequence[str]) -> list[Record]:
    """Records of all cells, after running those that are not done; a cell that left no record is recorded as failed."""
    progress = Progress(quiet=cells[0].config["quiet"])
    done = [is_done(cell) for cell in cells]
    try_out([cell for cell, record in zip(cells, done, strict=True) if record is None])
    todo = {
        (cell.run_dir, tuple(metric_keys(cell).items())): [*job, f"hydra.sweep.subdir={cell.model.name}/{cell.run_dir.name}"]
        for cell, job, record in zip(cells, jobs, done, strict=True)
        if record is None
    }
    there = f"{len({cell.run_dir for cell, record in zip(cells, done, strict=True) if record})} done before"
    progress.say(f"{len(todo)} {'cell' if len(todo) == 1 else 'cells'} to run, {there}" if todo else f"nothing to do: {there}")
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    launcher = [o for o in overrides if o.startswith("hydra")]
    with _shared_cores(composer, launcher, len(todo)) as at_once:
        waiting = [(run_dir, job) for (run_dir, _), job in todo.items()]
        while waiting:
            part, waiting = waiting[:at_once], waiting[at_once:]
            try:
                composer.launch([job for _, job in part], task, [*launcher, f"out={cells[0].config['out']}"])
            except ConfigError:
                raise
            except Exception as error:  # a process that dies takes its neighbours along: they get one of their own
                progress.say(f"the launcher stopped: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
                left = [one for one in [*part, *waiting] if len(part) > 1 and not _recorded(one[0], began)]
                waiting, at_once = left or waiting, 1
    return [_record(cell, began) if record is None else record for cell, record in zip(cells, done, strict=True)]


@contextmanager
def _shared_cores(composer: Composer, launcher: Sequence[str], jobs: int) -> Iterator[int]:
    """Give each worker process on this machine its share of the cores; yields how many jobs to hand over at once."""
    config = composer.compose(launcher).hydra.launcher
    kind, cores = config._target_.rsplit(".", 1)[1], len(os.sched_getaffinity(0))
    workers = {"JoblibLauncher": config.get("n_jobs") or 1, "LocalLauncher": cores}.get(kind)
    if workers is None or "OMP_NUM_THREADS" in os.environ:
        yield workers if kind == "LocalLauncher" and workers else max(1, jobs)
        return
    workers = cores if workers < 0 else workers
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores // max(1, min(jobs, workers))))
    try:
        yield cores if kind == "LocalLauncher" else max(1, jobs)
    finally:
        del os.environ["OMP_NUM_THREADS"]


def _recorded(run_dir: Path, began: str) -> bool:
    """Whether a record has been written since the launch."""
    try:
        return (Record.load(run_dir / "record.json").finished or "") >= began
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _record(cell: Cell, began: str) -> Record:
    """The record that a cell's process has written since the launch; one that says it failed if there is none."""
    try:
        record = Record.load(cell.run_dir / "record.json")
        if (record.finished or "") >= began:
            return record
        reason = "its process ended without a new record"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its process ended without a record ({type(error).__name__})"
    record = new_record(cell)
    record.state, record.reason = "failed", f"{reason}; see {cell.run_dir}/run.log"
    record.save(cell.run_dir / "record.json")
    return record


def _each_table(composer: Composer, control: Sequence[str]) -> list[list[str]]:
    """The control words, once for each table that a pattern such as `table=qvd/*` stands for.

    Raises:
        ConfigError: no table fits the pattern.
    """
    pattern = next((word.partition("=")[2] for word in control if word.startswith("table=")), "")
    if not any(sign in pattern for sign in "*?"):
        return [list(control)]
    known = composer.groups["table"]
    names = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not names:
        folders = {f"{name.rpartition('/')[0]}/*" for name in known if "/" in name}
        raise ConfigError(f"table={pattern} fits no table{nearest(pattern, folders)}")
    others = [word for word in control if not word.startswith("table=")]
    return [[*others, f"table={name}"] for name in names]


def _table(head: dict[str, Any]) -> Table | None:
    from vdqbench.report.spec import Table

    if head.get("table") is None:
        if head["preset"] is not None:
            raise ConfigError(f"preset={head['preset']} belongs to a table: add table=NAME")
        return None
    return Table.from_config(head["table"])


def _show(study: Study) -> int:
    import sys

    import yaml

    for job in study.jobs:
        sys.stdout.write(f"# {' '.join(job)}\n" + yaml.safe_dump(study.composer.plain(job), sort_keys=False))
    return 0


def _finish(cells: Sequence[Cell], records: Sequence[Record], study: Study) -> int:
    """Print the table or the overview, write its files, name the failures; 1 if any cell failed."""
    from rich.console import Console

    from vdqbench.progress import width
    from vdqbench.report.plain import overview, summary

    console = Console(width=width())
    if not study.tables:
        console.print(overview(records))
    waiting, written = list(records), []
    for table in study.tables:
        from vdqbench.report import render
        from vdqbench.report.table import rows

        count = len(table.cells(study.preset))
        rendered = rows(table, waiting[:count], preset=study.preset)
        del waiting[:count]
        console.print(render.to_rich(rendered, width=width()))
        for path in render.write_all(rendered, Path(cells[0].out) / "tables"):
            written.append(path)
            Progress(quiet=cells[0].config["quiet"]).say(f"wrote {path}")
    if len(records) > 1 or any(record.state != "done" for record in records):
        console.print(summary(list({record.key: record for record in records}.values())), markup=False, highlight=False)
    if not study.tables:
        for directory in dict.fromkeys(cell.run_dir for cell in cells):
            console.print(f"{directory}", markup=False, highlight=False, soft_wrap=True)
    _publish(cells, [path for path in written if path.suffix == ".json"])
    return int(any(record.state == "failed" for record in records))


def _publish(cells: Sequence[Cell], tables: Sequence[Path]) -> None:
    """Hand everything to the tracker once more, now that references and papers' numbers are known, and say how it stands with it."""
    from vdqbench.track import publish, settle

    runs, options, progress = [cell.run_dir for cell in cells], cells[0].config["tracker"], Progress(quiet=cells[0].config["quiet"])
    ok, reason = publish(cells[0].out, runs, tables, options)
    if ok:
        ok, reason = settle(cells[0].out, runs, tables, options)
    if reason:
        progress.say(reason if ok else f"not published: {reason}")


def _sweep(arguments: Arguments) -> list[str]:
    """What trackers group the cells of a sweep by, unless that is given: the same for the same words."""
    from vdqbench.store import key_of

    words = [word for word in arguments.of_cells() if not word.startswith(("hydra", "tracker", "out=", "quiet="))]
    return [] if any(word.startswith("study=") for word in words) else [f"study=sweep-{key_of(words)[:8]}"]
