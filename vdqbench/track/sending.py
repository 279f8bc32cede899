"""Runs made with wandb from what is on disk: one per cell, one per table. Only the process that sends imports this."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from vdqbench.record import Record
from vdqbench.report import below
from vdqbench.report.html.tables import read_table
from vdqbench.report.pareto import front
from vdqbench.report.render import to_csv
from vdqbench.report.table import Rendered
from vdqbench.track import content, media, page
from vdqbench.track.facts import Facts
from vdqbench.track.queue import table_id
from vdqbench.track.wandb import Wandb

SIZE = "size (MB)"
NUMBERS = ("mean", "se", "n", "difference", "difference_se", "paper", "paper_difference")


def send_cell(folder: Path, options: Wandb) -> str:
    """Make the run of a cell; returns where it is.

    Raises:
        Exception: there is no record, or whatever wandb raises.
    """
    facts = Facts.of(folder)
    record = facts.record
    group = options.group or facts.group
    marks = (*(str(record.cell[tag]) for tag in ("model", "method", "bits", "kernel") if record.cell.get(tag)), group, *facts.tables)
    identity = {
        "id": record.key,
        "name": record.name,
        "group": group,
        "job_type": "reference" if record.key == record.keys.get("reference") else "cell",
        "tags": _tags(marks),
        "config": content.config(facts),
    }
    with _run(folder, options, identity) as run:
        run.summary.update(content.summary(facts))
        _log_curves(run, record)
        _log_videos(run, facts, options.max_videos)
        failed = record.state == "failed"
        run.finish(exit_code=int(failed))
    return _where(folder, options)


def send_table(out: Path, path: Path, options: Wandb) -> str:
    """Make the run of a table from its .json file: the table, its plots, grids and files; returns where it is.

    Raises:
        Exception: it is no file of a table, or whatever wandb raises.
    """
    rendered, name = read_table(json.loads(path.read_text(encoding="utf-8"))), table_id(out, path)
    folder = out / "wandb" / name
    cells = {line.title: found for line in rendered.lines if line.key and (found := _cell(out, line.key))}
    models = sorted({str(line.cell["model"]) for line in rendered.lines if line.cell})
    identity = {
        "id": name,
        "name": path.relative_to(out / "tables").with_suffix("").as_posix(),
        "group": options.group or rendered.name,
        "job_type": "table",
        "tags": _tags((rendered.name, *models)),
        "notes": rendered.title,
        "config": {
            "cell": {"model": ", ".join(models), "tables": [rendered.name], "preset": rendered.preset},
            "rows": {line.title: line.key for line in rendered.lines if line.key},
        },
    }
    with _run(folder, options, identity) as run:
        states = [line.state for line in rendered.lines]
        run.summary.update({"rows": len(states), **{f"rows/{state}": states.count(state) for state in sorted(set(states))}})
        run.log(_tables(rendered))
        if plots := _plots(rendered, {title: record for title, (record, _) in cells.items()}):
            run.log(plots)
        if grids := _grids(folder, rendered, cells):
            run.log(grids)
        for file in sorted(path.parent.glob(f"{path.stem}.*")):
            run.save(file, base_path=file.parent, policy="now")
        run.finish(exit_code=0)
    return _where(folder, options)


@contextmanager
def _run(folder: Path, options: Wandb, identity: dict[str, Any]) -> Iterator[wandb.Run]:
    """A run of this identity, which takes the place of an earlier one of the same id; what that one left in the folder is removed."""
    own = folder / "wandb"
    own.mkdir(parents=True, exist_ok=True)
    before = [*own.glob("*run-*"), *(own / "data").glob("artifacts/staging/*")]
    os.environ["WANDB_DATA_DIR"] = str(own / "data")
    run = wandb.init(
        **identity,
        project=options.project,
        entity=options.entity,
        dir=folder,
        mode=options.mode,  # type: ignore[arg-type]
        settings=wandb.Settings(
            silent=True,
            console="off",
            host="",
            init_timeout=options.init_timeout,
            disable_git=True,
            disable_code=True,
            symlink=False,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    try:
        yield run
    except BaseException:
        run.finish(exit_code=1)
        raise
    for path in before:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _tags(words: Iterable[str | None]) -> list[str]:
    """By which runs are filtered; the server takes at most 64 characters."""
    return list(dict.fromkeys(word[:64] for word in words if word))


def _where(folder: Path, options: Wandb) -> str:
    return "sent" if options.mode == "online" else f"kept in {folder}/wandb"


def _log_curves(run: wandb.Run, record: Record) -> None:
    for axis, names in (("step", "curve/*"), ("layer", "layers/*")):
        run.define_metric(axis, hidden=True, summary="none")
        run.define_metric(names, step_metric=axis, summary="none")
    for row in content.by_step(record):
        run.log(row)
    columns, rows = content.by_layer(record)
    if not rows:
        return
    for i, _, _, mean, least, _ in rows:
        run.log({name: value for name, value in (("layer", i), ("layers/sqnr", mean), ("layers/least_sqnr", least)) if value is not None})
    run.log({"layers": _table(columns, rows)})


def _log_videos(run: wandb.Run, facts: Facts, most: int) -> None:
    record, folder = facts.record, facts.folder
    columns, rows = content.per_video(record)
    if not rows:
        return
    files = media.playing(record, folder)
    videos: list[wandb.Video | None] = []
    for i, video in enumerate(record.videos):
        file = files.get((str(video["prompt_id"]), int(video["seed"]))) if i < most else None
        videos.append(wandb.Video(str(file), caption=video["prompt"], format="mp4") if file else None)
    logged: dict[str, Any] = {
        "videos": [video for video in videos if video],
        "per_video": wandb.Table([*columns, "video"], [[*row, video] for row, video in zip(rows, videos, strict=True)]),
    }
    if facts.reference is not None and facts.reference_folder is not None:
        beside = {"full precision": (facts.reference, facts.reference_folder), record.name: (record, folder)}
        made = media.side_by_side(folder / "wandb" / "grid.mp4", beside)
        logged |= {"grid": wandb.Video(str(made), caption=" | ".join(beside), format="mp4")} if made else {}
    run.log(logged)


def _cell(out: Path, key: str) -> tuple[Record, Path] | None:
    """The record with this key and its run folder."""
    for folder in sorted((out / "runs").glob(f"*/*-{key}")):
        try:
            return Record.load(folder / "record.json"), folder
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> wandb.Table:
    return wandb.Table(list(columns), [list(row) for row in rows])


def _tables(rendered: Rendered) -> dict[str, Any]:
    """The table as it is printed, as a page and as numbers, and how it agrees with the paper."""
    tidy = list(csv.DictReader(io.StringIO(to_csv(rendered))))
    numbers = [[float(row[name]) if name in NUMBERS and row[name] else row[name] or None for name in row] for row in tidy]
    made = {
        "page": wandb.Html(page.to_html(rendered), inject=False),
        "table": _table(*page.rows(rendered)),
        "numbers": wandb.Table(list(tidy[0]), numbers, allow_mixed_types=True),
    }
    if rendered.agreement:
        orders = (below.ORDER, below.orders(rendered.agreement))
        for name, (head, rows) in {"orderings": orders, "claims": below.verdicts(rendered.agreement)}.items():
            made |= {name: _table(head, rows)} if rows else {}
    return made


def _plots(rendered: Rendered, records: dict[str, Record]) -> dict[str, Any]:
    """Of each score, a bar for each row, and the score against the size of the weights."""
    made = {}
    sizes = {title: size for title, record in records.items() if (size := record.scores.get("weight_size", {}).get("mean")) is not None}
    for i, heading in enumerate(rendered.headings):
        bars = {line.title: mean for line in rendered.lines if (mean := line.cells[i].mean) is not None}
        if len(bars) > 1:
            table = _table(["row", heading.label], list(bars.items()))
            made[f"bars/{heading.score}"] = wandb.plot.bar(table, "row", heading.label, title=heading.label)
        points = [(title, sizes[title], mean) for title, mean in bars.items() if title in sizes]
        if len(points) > 1 and heading.score != "weight_size" and heading.higher_is_better is not None:
            best = front([(size, mean) for _, size, mean in points], heading.higher_is_better)
            table = _table(["row", SIZE, heading.label, "front"], [[*point, i in best] for i, point in enumerate(points)])
            made[f"pareto/{heading.score}"] = wandb.plot.scatter(table, SIZE, heading.label, title=f"{heading.label} over size of weights")
    return made


def _grids(folder: Path, rendered: Rendered, cells: dict[str, tuple[Record, Path]]) -> dict[str, Any]:
    """Of each group, its rows beside the reference, playing, and as a picture."""
    first = next(((line.label, cells[line.title]) for line in rendered.lines if line.kind == "reference" and line.title in cells), None)
    rows = [(line.group, line.label, cells[line.title]) for line in rendered.lines if line.kind == "cell" and line.title in cells]
    playing, pictures = [], []
    for i, (group, columns) in enumerate(media.groups(rows, first).items()):
        if path := media.side_by_side(folder / "wandb" / f"grid-{i}.mp4", columns):
            caption = f"{group}: {' | '.join(columns)}"
            playing.append(wandb.Video(str(path), caption=caption, format="mp4"))
            pictures.append((media.contact_sheet(folder / "wandb" / f"sheet-{i}.png", columns), caption))
    if not playing:
        return {}
    media.same_size([picture for picture, _ in pictures])
    return {"grids": playing, "sheets": [wandb.Image(str(picture), caption=caption) for picture, caption in pictures]}
