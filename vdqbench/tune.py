"""Choose one parameter of a method by a grid, on the calibration prompts, and keep the choice as a method of its own.

Judged by the denoiser's output error at moments of the calibration trajectories, or by a score of videos of the calibration
prompts, made as ordinary cells. The prompts that a table is scored on are never looked at.
"""

from __future__ import annotations

import datetime
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vdqbench.compose import Composer, expand
from vdqbench.config import CONF, Cell
from vdqbench.errors import ConfigError, Unsupported, nearest
from vdqbench.progress import Progress
from vdqbench.prompts import KEYS as PROMPT_KEYS
from vdqbench.store import Store, write_atomic

FAST = ("output_error", "temporal_error", "guidance_error")
"""Names in `vdqbench.probe.ERRORS`, which needs torch."""
ON_CALIBRATION = [f"prompts.{key}=${{calibration.prompts.{key}}}" for key in sorted(PROMPT_KEYS)] + ["seed=${calibration.seed}"]
"""Overrides that make a cell's videos of the calibration prompts, with noise that no evaluation uses."""


@dataclass(frozen=True)
class Request:
    """What is to be tuned.

    Attributes:
        overrides: of the cell.
        folders: with configurations of the user.
        over: key of the parameter.
        values: of it, as overrides can list them (`0.1,0.3`, `range(2,8,2)`).
        by: `output_error`, `temporal_error`, `guidance_error` (lower is better) or a score.
        moments: of the calibration trajectories that are repeated, for the errors.
        name: of the method to be written; None names it after the one that is tuned.
    """

    overrides: tuple[str, ...]
    folders: tuple[str, ...]
    over: str
    values: str
    by: str = "output_error"
    moments: int = 8
    name: str | None = None


@dataclass(frozen=True)
class Row:
    """One value of the grid: its overrides, its error or score, and why there is none."""

    value: str
    job: tuple[str, ...]
    result: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Tuned:
    """The grid, the chosen row, the file with the choice, and the command that uses it; None where no value could be judged."""

    rows: tuple[Row, ...]
    best: Row | None
    path: Path | None
    command: str | None


def tune(request: Request) -> Tuned:
    """Judge every value and write down the best one.

    Raises:
        ConfigError: one sentence with what is wrong; nothing has run then.
    """
    composer = Composer(request.folders)
    if not request.over.startswith("method."):
        raise ConfigError(f"over={request.over} must be a parameter of the method, such as method.transform.smooth.alpha")
    base = only_cell(request.overrides, "tune")
    values = [job[0] for job in expand([f"{request.over}={request.values}"])]
    jobs = [(*base, value) for value in values]
    cells = [Cell.from_config(composer.plain(job)) for job in jobs]
    if cells[0].recipe.is_fp:
        raise ConfigError("method=fp has nothing to tune; choose a method and bits that quantize")
    name, path = _target(request, composer, cells[0])
    if request.by in FAST:
        results = _errors(cells, request)
        higher = False
    else:
        results, higher = _scores(composer, jobs, cells[0], request)
    rows = tuple(
        Row(value.partition("=")[2], job, result, reason) for value, job, (result, reason) in zip(values, jobs, results, strict=True)
    )
    judged = [row for row in rows if row.result is not None]
    if not judged:
        return Tuned(rows, None, None, None)
    best = (max if higher else min)(judged, key=lambda row: row.result or 0.0)
    text = _method(composer, best, rows, request, cells[0], name, higher)
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))
    kept = [word for word in request.overrides if not re.match(r"[+~]*method\b", word)]
    folders = [word for folder in (*request.folders, str(path.parents[1])) for word in ("--config-dir", folder)]
    return Tuned(rows, best, path, shlex.join(["vdqbench", *folders, *kept, f"method={name}"]))


def only_cell(overrides: Sequence[str], verb: str) -> list[str]:
    """The overrides of the one cell that a verb is about.

    Raises:
        ConfigError: they name several, or a table.
    """
    cells = expand(list(overrides))
    if len(cells) != 1:
        raise ConfigError(f"vdqbench {verb} is about one cell, and these overrides name {len(cells)}; give each of them one value")
    if table := next((word for word in overrides if word.startswith(("table=", "plan=", "preset="))), None):
        raise ConfigError(f"{table} belongs to tables and sweeps; vdqbench {verb} takes the overrides of one cell")
    return cells[0]


def metrics_for(scores: Sequence[str], composer: Composer, config: dict[str, Any]) -> list[str]:
    """Overrides that choose the metrics of some scores: those of the cell if they give them all, else the first that do.

    Raises:
        ConfigError: no metric gives one of the scores.
    """
    given = {score for options in config["metric"].values() for score in options.get("scores") or ()}
    if given.issuperset(scores):
        return [f"metric=[{','.join(dict.fromkeys(_owner(score, config['metric']) for score in scores))}]"]
    shipped = {file.stem: file for root in (CONF, *composer.folders) for file in sorted((root / "metric").glob("*.yaml"))}
    known = {name: yaml.safe_load(file.read_text(encoding="utf-8")) or {} for name, file in shipped.items()}
    for score in scores:
        if not any(score in (options.get("scores") or ()) for options in known.values()):
            every = [*FAST, *(score for options in known.values() for score in options.get("scores") or ())]
            raise ConfigError(f"by={score} is neither an error nor a score{nearest(score, every)}")
    return [f"metric=[{','.join(dict.fromkeys(_owner(score, known) for score in scores))}]"]


def _owner(score: str, metrics: dict[str, Any]) -> str:
    return next(name for name, options in metrics.items() if score in (options.get("scores") or ()))


def without_metric(job: Sequence[str]) -> list[str]:
    """Overrides but for the choice of metrics (their options stay)."""
    return [word for word in job if not word.startswith("metric=")]


def _target(request: Request, composer: Composer, cell: Cell) -> tuple[str, Path]:
    """Name and path of the method to be written."""
    name = request.name or f"{cell.method}_tuned"
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise ConfigError(f"name={name} must be letters, digits and _ . + -")
    path = cell.out / "tuned" / "method" / f"{name}.yaml"
    if any(
        (root / "method" / f"{name}.yaml").exists() for root in (CONF, *composer.folders) if root.resolve() != path.parents[1].resolve()
    ):
        raise ConfigError(f"name={name} is a method already; give the tuned one another name")
    return name, path


def _errors(cells: Sequence[Cell], request: Request) -> list[tuple[float | None, str | None]]:
    """Output error of each cell; all of them on the outputs of one calibration."""
    if request.moments < 1:
        raise ConfigError(f"moments={request.moments} must be at least 1")
    from vdqbench.probe import Probe, applied

    progress, store = Progress(quiet=cells[0].config["quiet"]), Store(cells[0].out / "store")
    probe = Probe(cells[0], store, progress, 1, request.moments, [request.by])
    results: list[tuple[float | None, str | None]] = []
    with progress.stage(f"tune {request.over}", len(cells)) as advance:
        for cell in cells:
            try:
                with applied(cell, store, progress):
                    results.append((_finite(probe.errors()[request.by]), None))
            except Unsupported as error:
                results.append((None, str(error)))
            advance(1)
    return results


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _scores(
    composer: Composer, jobs: Sequence[Sequence[str]], cell: Cell, request: Request
) -> tuple[list[tuple[float | None, str | None]], bool]:
    """Mean of the score of each cell over videos of the calibration prompts, and whether more of it is better."""
    from vdqbench.sweep import run_all

    chosen = metrics_for([request.by], composer, dict(cell.config))
    jobs = [[*without_metric(job), *chosen, *ON_CALIBRATION] for job in jobs]
    cells = [Cell.from_config(composer.plain(job)) for job in jobs]
    results: list[tuple[float | None, str | None]] = []
    direction: bool | None = None
    for record in run_all(composer, jobs, cells, request.overrides):
        score = record.scores.get(request.by) if record.state == "done" else None
        results.append((None, record.reason) if score is None else (score["mean"], None))
        direction = direction if score is None else score["higher_is_better"]
    if direction is None and any(result is not None for result, _ in results):
        raise ConfigError(f"by={request.by} has no better direction, so it cannot choose; give another score")
    return results, bool(direction)


def _method(composer: Composer, best: Row, rows: Sequence[Row], request: Request, cell: Cell, name: str, higher: bool) -> str:
    """The chosen method as a config file that says how it was chosen."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(composer.compose(best.job).method, resolve=False)
    body = yaml.safe_dump({**node, "name": name}, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {line}\n" for line in _told(best, rows, request, cell, higher)) + body


def _told(best: Row, rows: Sequence[Row], request: Request, cell: Cell, higher: bool) -> Iterator[str]:
    from vdqbench import __version__
    from vdqbench.environment import revision

    prompts = cell.calibration_prompts
    choice = f"{request.over.removeprefix('method.')}={best.value}"
    yield f"{cell.method} with {choice}, chosen by {request.by} at {cell.bits} on {cell.model.name}"
    results = ", ".join(f"{row.value}: {'none' if row.result is None else f'{row.result:.6g}'}" for row in rows)
    yield f"{request.by} ({'higher' if higher else 'lower'} is better) of {request.over}: {results}"
    where = f"{request.moments} moments of the trajectories" if request.by in FAST else "videos"
    sampler = f"{cell.sampler.name}, {cell.sampler.steps} steps"
    yield f"on {where} of the {len(prompts.items)} calibration prompts {prompts.name}, {sampler}, seed {cell.config['calibration']['seed']}"
    if shared := {text for _, text in prompts.items} & {text for _, text in cell.prompts.items}:
        yield f"{len(shared)} of these prompts are also evaluated on (prompts={cell.prompts.name}), which flatters the choice"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    yield f"vdqbench {__version__}, revision {revision() or 'unknown'}, {day}"
    own = [f"over={request.over}", f"values={request.values}", f"by={request.by}", *([f"moments={request.moments}"] * (request.by in FAST))]
    yield shlex.join(["vdqbench", "tune", *request.overrides, *own])
