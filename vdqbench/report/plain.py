"""The plain overview: every record below a results folder in one flat table, and what failed."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.record import STATES, Record
from vdqbench.report.table import named
from vdqbench.store import write_atomic

if TYPE_CHECKING:
    from rich.table import Table

FIELDS = ("model", "method", "bits", "prompts", "state", "n")


def load_all(out: str | Path) -> list[Record]:
    """All records below `<out>/runs`, by path; one that cannot be read stands there as failed, with the reason."""
    return [load(path) for path in sorted(Path(out).glob("runs/*/*/record.json"))]


def load(path: Path) -> Record:
    """A record; one that cannot be read stands there as failed, with the reason."""
    try:
        return Record.load(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        label, _, key = path.parent.name.rpartition("-")
        reason = f"its record cannot be read ({type(error).__name__}: {error}); run the cell again"
        return Record(key, {"model": path.parent.parent.name, "method": label}, "failed", reason)


def overview_rows(records: Sequence[Record], sort: str | None = None) -> list[dict[str, Any]]:
    """One flat mapping per record: model, method, bits, prompts, state, n, the mean of every score of any record, key, reason.

    Rows are ordered by model, method and bits; with `sort`, by that column, records without a value last, scores from the
    best one where the direction is known.

    Raises:
        ConfigError: `sort` is no column.
    """
    scores = list(dict.fromkeys(name for record in records for name in record.scores))
    rows: list[dict[str, Any]] = [
        {
            **{name: record.cell.get(name) for name in ("model", "method", "bits", "prompts")},
            "method": named(str(record.cell.get("method")), record),
            "state": record.state,
            "n": len(record.videos) or None,
            **{name: record.scores[name]["mean"] if name in record.scores else None for name in scores},
            "key": record.key,
            "reason": record.reason,
        }
        for record in records
    ]
    rows.sort(key=lambda row: [str(row[name] or "") for name in ("model", "method", "bits", "prompts", "key")])
    if sort is None:
        return rows
    if rows and sort not in rows[0]:
        raise ConfigError(f"sort={sort} is not a column of the overview{nearest(sort, rows[0])}")
    down = any(record.scores.get(sort, {}).get("higher_is_better") for record in records)
    known = sorted((row for row in rows if row[sort] is not None), key=lambda row: row[sort], reverse=down)
    return known + [row for row in rows if row[sort] is None]


def overview(records: Sequence[Record], sort: str | None = None) -> Table:
    """The overview for the terminal: columns without any value are left out; `sort` as of `overview_rows`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = overview_rows(records, sort)
    labels = {name: str(entry.get("label") or name) for record in records for name, entry in record.scores.items()}
    shown = [name for name in (rows[0] if rows else FIELDS) if name != "reason" and any(row[name] is not None for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in shown:
        numeric = name == "n" or name in labels
        table.add_column(Text(labels.get(name, name)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        style = {"failed": "red", "skipped": "yellow"}.get(row["state"], "")
        table.add_row(*(Text(_short(row[name])) for name in shown), style=style)
    return table


def _short(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def to_csv(records: Sequence[Record]) -> str:
    """The overview as CSV, in full precision."""
    rows = overview_rows(records)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [*FIELDS, "key", "reason"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def write_csv(records: Sequence[Record], path: str | Path) -> Path:
    """Write the overview as CSV in one step; returns the path."""
    path, text = Path(path), to_csv(records)
    write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def summary(records: Sequence[Record]) -> str:
    """How many cells are in which state, then a line for each that is not done, with its reason."""
    counts = Counter(record.state for record in records)
    lines = [f"{len(records)} {'cell' if len(records) == 1 else 'cells'}: " + ", ".join(f"{counts[s]} {s}" for s in STATES if counts[s])]
    for state in ("failed", "skipped"):
        lines += [f"{state} {r.name} {r.key}: {r.reason or 'no reason was recorded'}" for r in records if r.state == state]
    return "\n".join(lines) if records else "no cells"
