"""What a sensitivity run found, as CSV, as Markdown and as a heat map."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vdqbench.sensitivity.groups import Request, Row
from vdqbench.sensitivity.heatmap import heat_map

if TYPE_CHECKING:
    from PIL import Image

    from vdqbench.config import Cell
    from vdqbench.sensitivity.mixed import Mixed

MOST = 20
"""Rows of the Markdown table."""


def ranked(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """Rows of the cell's own bits with their losses, the most sensitive first; those without a result are left out."""
    known = [(row, row.loss) for row in rows if row.variant.side == "cell" and row.loss is not None]
    return sorted(known, key=lambda pair: -pair[1])


def as_csv(rows: Sequence[Row], request: Request) -> str:
    """All rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*request.labels, "range", "ranges", "variant", "layers", "elements", "judge", "value", "loss", "reason"])
    for row in rows:
        labels = [row.group.labels[key] for key in request.labels]
        numbers = ["" if number is None else repr(number) for number in (row.value, row.loss)]
        size = [len(row.group.layers), row.group.elements]
        writer.writerow([*labels, row.range, request.parts, row.variant.name, *size, row.judge, *numbers, row.reason or ""])
    return text.getvalue()


def as_markdown(rows: Sequence[Row], request: Request, cell: Cell, mixed: Mixed | None) -> str:
    """What was measured, the most sensitive groups, and the mixed precision."""
    return "\n".join([*_about(rows, request, cell), *_table(rows, request), *(_mixed(request, mixed) if mixed else [])]) + "\n"


def _about(rows: Sequence[Row], request: Request, cell: Cell) -> Iterator[str]:
    from vdqbench import __version__
    from vdqbench.environment import revision

    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    yield f"# Sensitivity of {cell.model.name} to {cell.method} at {cell.bits}, by {judges}\n"
    prompts = f"the {len(cell.calibration_prompts.items)} calibration prompts {cell.calibration_prompts.name}"
    steps = f"the {cell.sampler.steps} steps"
    within = f"each of {request.parts} ranges of {steps}" if request.parts > 1 else steps
    if request.fast:
        yield f"One group at a time is quantized; the loss is the relative squared error of the denoiser at {request.moments} moments in"
        yield f"{within}, on {prompts}."
        if request.by == "proxies":
            yield "The judges are proxies: errors of the denoiser (guidance, neighbouring frames, output) in the place of scores of videos."
    else:
        yield f"One group at a time is quantized, in {within} by itself; the loss is how much worse the score of its videos is than in"
        yield f"full precision, on {prompts}."
    yield f"\nvdqbench {__version__}, revision {revision() or 'unknown'}; table.csv has all rows, heatmap.png the map.\n"


def _table(rows: Sequence[Row], request: Request) -> Iterator[str]:
    yield "| " + " | ".join([*request.labels, "range", "judge", "loss", "share of weights"]) + " |"
    yield "|" + " --- |" * (len(request.labels) + 2) + " ---: | ---: |"
    whole = sum(group.elements for group in {row.group.name: row.group for row in rows}.values())
    for row, loss in ranked(rows)[:MOST]:
        labels = [row.group.labels[key] for key in request.labels]
        yield "| " + " | ".join([*labels, str(row.range), row.judge, f"{loss:.4g}", f"{100 * row.group.elements / whole:.2f} %"]) + " |"
    if failed := [row for row in rows if row.loss is None]:
        yield f"\n{len(failed)} rows have no result: {failed[0].reason}"


def _mixed(request: Request, mixed: Mixed) -> Iterator[str]:
    yield f"\n## Bits under a budget ({request.allocation})\n"
    yield f"Weights have {mixed.weight_bits:.3f} bits and activations {mixed.activation_bits:.3f}, on average over elements and steps."
    yield f"Stored weights take {mixed.stored_bits:.3f} bits an element: a layer whose width changes is stored in each of its widths."
    if mixed.beside:
        yield "\n| whole model | output_error |\n| --- | ---: |"
        yield from (f"| {name} | {error:.4g} |" for name, error in mixed.beside.items())
    yield f"\n    {mixed.command}"


def picture(rows: Sequence[Row], request: Request) -> Image.Image | None:
    """The losses at the cell's own bits: a panel for each range, blocks across if they tell groups apart; None without any."""
    across = "block" if "block" in request.labels and len(request.labels) > 1 else None
    panels: dict[str, dict[tuple[str, str], float]] = {}
    down: dict[str, None] = {}
    columns: dict[str, None] = {}
    for row in rows:
        if row.variant.side != "cell" or row.loss is None or not math.isfinite(row.loss) or (request.fast and row.loss <= 0):
            continue
        labels = [row.group.labels[key] for key in request.labels if key != across]
        at = " ".join(labels) or "all", row.group.labels[across] if across else "all"
        panels.setdefault(f"range {row.range}" if request.parts > 1 else "all steps", {})[at] = row.loss
        down[at[0]], columns[at[1]] = None, None
    if not panels:
        return None
    judges = ", ".join(dict.fromkeys(row.judge for row in rows))
    title = f"{judges}: one group quantized at a time" + (", blocks across" if across else "")
    return heat_map(panels, list(down), sorted(columns, key=_numbered), title, logarithmic=request.fast)


def _numbered(label: str) -> tuple[bool, int]:
    return not label.isdigit(), int(label) if label.isdigit() else 0
