"""`plan=true`: what would run, what is there already, and about how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from vdqbench.config import Cell
from vdqbench.progress import width
from vdqbench.record import Record
from vdqbench.runner import is_done, metric_keys
from vdqbench.store import Store


def show(cells: Sequence[Cell]) -> int:
    """Print one line for each different cell; nothing is run, loaded or written."""
    cells = list({(cell.run_dir, tuple(metric_keys(cell).items())): cell for cell in cells}.values())
    store = Store(cells[0].out / "store")
    pace = seconds_per_video(cells[0].out)
    table = Table("cell", "key", "state", "calibration", "videos", "time")
    left = 0.0
    seen: set[str] = set()
    for cell in cells:
        missing = {cell.video_key(sample) for sample in cell.samples if not store.has("video", cell.video_key(sample), ".mkv")} - seen
        seen |= missing
        each = pace.get(cell.model.name)
        left += len(missing) * (each or 0)
        table.add_row(
            cell.label,
            cell.key,
            "done" if is_done(cell) else "to do",
            calibration(cell, store),
            f"{len(cell.samples) - len(missing)}/{len(cell.samples)}",
            "" if not missing else f"{len(missing) * each:.0f} s" if each else "?",
        )
    console = Console(width=width())
    console.print(table)
    timing = f"about {left:.0f} s of generation" if pace else "no record of this model yet to tell the time from"
    console.print(f"{sum(is_done(cell) is None for cell in cells)} of {len(cells)} cells to run; {timing}", highlight=False)
    return 0


def calibration(cell: Cell, store: Store) -> str:
    """Whether the statistics that the cell needs are there."""
    if cell.calibration_key is None:
        return "none needed"
    return "there" if store.has("calibration", cell.calibration_key, ".safetensors") else "to do"


def seconds_per_video(out: Path) -> dict[str, float]:
    """Mean generation time by model, from the records below a results folder."""
    seconds: dict[str, list[float]] = {}
    for path in (out / "runs").glob("*/*/record.json"):
        try:
            record = Record.load(path)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if "generate" in record.timings and record.videos:
            seconds.setdefault(record.cell["model"], []).append(record.timings["generate"] / len(record.videos))
    return {model: sum(times) / len(times) for model, times in seconds.items()}
