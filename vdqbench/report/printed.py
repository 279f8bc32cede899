"""Printed numbers: how they were rounded, which cells they belong to, and where else these are printed."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vdqbench.errors import ConfigError, nearest
from vdqbench.report.spec import Row, Table

WRONG, RIGHT, REMARK = "does not follow", "follows", "remark"

Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Finding:
    """One sentence about a table: something that `does not follow`, that `follows`, or a `remark`."""

    table: str
    check: str
    state: str
    text: str


def rounds_to(value: float, printed: float, digits: int) -> bool:
    """Whether a value could be printed so: half a unit of the last digit away at most, rounding errors allowed for."""
    return abs(value - printed) <= 0.5 * 10.0**-digits * (1 + 1e-9) + 1e-12 * abs(value)


def cut(value: float, digits: int) -> str:
    """A value with its further digits cut off."""
    return f"{math.floor(value * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def count(percent: float, n: int, digits: int) -> int | None:
    """The k with 100 k / n printed as this percentage; None if there is none."""
    k = round(percent * n / 100)
    return k if 0 <= k <= n and rounds_to(100 * k / n, percent, digits) else None


def form(value: float, digits: int) -> str:
    return f"{value:.{digits}f}"


def bits_of(row: Row) -> tuple[float, float]:
    """Bits of weights and activations of a cell, from its `bits=w4a8`.

    Raises:
        ConfigError: it has none.
    """
    chosen = next((o.partition("=")[2] for o in reversed(row.overrides) if o.startswith("bits=")), "")
    match = re.fullmatch(r"w(\d+)a(\d+)", chosen)
    if match is None:
        raise ConfigError(f"row {row.title!r} has bits={chosen or 'nothing'}; the audit needs an integer pair such as bits=w4a8")
    return float(match.group(1)), float(match.group(2))


def identity(table: Table, row: Row) -> tuple[tuple[str, str], ...] | str:
    """What makes a cell: the last value of each of its overrides but metrics; of a row without overrides, its title."""
    if not row.is_cell:
        return f"{table.name} {row.title}"
    settings = dict(override.split("=", 1) for override in (*table.base, *row.overrides))
    return tuple(sorted((key, value) for key, value in settings.items() if key != "metric"))


def prints(table: Table, row: Row, tables: Tables) -> list[tuple[Table, Row]]:
    """The other rows of all tables that are the same cell."""
    if not row.is_cell:
        return []
    return [(t, r) for t in tables.values() for r in t.rows if r is not row and r.is_cell and identity(t, r) == identity(table, row)]


def before(table: Table, other: Table, tables: Tables) -> bool:
    order = list(tables)
    return order.index(table.name) < order.index(other.name)


def once(table: Table, name: str, value: float) -> bool:
    return sum(row.paper.get(name) == value for row in table.rows) == 1


def computed(table: Table, name: str) -> bool:
    """Whether a column follows from bits alone, by a declared formula."""
    return any(
        name == options.get("column") for entry in table.audit for key, options in entry.items() if key in ("size", "bops", "compression")
    )


def reference_row(table: Table, column: str) -> Row:
    row = next((row for row in table.rows if row.reference and column in row.paper), None)
    if row is None:
        raise ConfigError(f"table {table.name}: audit: {column} has no number in the reference row, from which the others follow")
    return row


def other_table(table: Table, tables: Tables, name: str) -> Table:
    if name not in tables:
        raise ConfigError(f"table {table.name}: audit: {name} is no table of the paper{nearest(name, tables)}")
    return tables[name]


def value_of(table: Table, tables: Tables, title: str, column: str) -> float:
    """A printed number."""
    row = next((row for row in table.rows if row.title == title), None)
    if row is None:
        raise ConfigError(f"table {table.name}: audit: {title!r} is no row{nearest(title, {row.title for row in table.rows})}")
    if column not in row.paper:
        raise ConfigError(f"table {table.name}: audit: row {title!r} has no number {column}{nearest(column, row.paper)}")
    return row.paper[column]
