"""How far a measured table agrees with its paper: the ordering of the methods score by score, and the paper's claims.

Orderings are compared within a group (the same bits), over cells that have both numbers; neither the reference nor averages compete.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from vdqbench.record import Sample
from vdqbench.report.claims import shown
from vdqbench.report.kendall import kendall
from vdqbench.report.paired import Estimate, difference
from vdqbench.report.printed import form

if TYPE_CHECKING:
    from vdqbench.report.spec import Row, Table


@dataclass(frozen=True)
class Measured:
    """A column with paper numbers under `name`: our means by row title, None for a hole, and values by sample where there are any."""

    name: str
    label: str
    digits: int
    higher_is_better: bool | None
    means: Mapping[str, float | None]
    samples: Mapping[str, Mapping[Sample, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Flip:
    """A pair of rows that the paper orders the other way round; `apart` is ours of `worse` minus `better`, paired where possible."""

    better: str
    worse: str
    apart: Estimate


@dataclass(frozen=True)
class Ordering:
    """Agreement of one score: tau-b over `pairs` of `rows` rows, None where all are tied; `exact` says what p is."""

    name: str
    label: str
    digits: int
    rows: int
    pairs: int
    tau: float | None
    p: float | None
    exact: bool
    flips: tuple[Flip, ...]


@dataclass(frozen=True)
class Verdict:
    """A claim, what the paper's own numbers say of it (None in a table without a paper), and what ours do."""

    claim: str
    paper: str | None
    ours: str


@dataclass(frozen=True)
class Agreement:
    """What is shown below a table. `grouped`: pairs are formed within groups."""

    grouped: bool
    orderings: tuple[Ordering, ...]
    verdicts: tuple[Verdict, ...]


def agree(table: Table, measured: Sequence[Measured], home: bool = False) -> Agreement | None:
    """Agreement of a table with its paper, and its claims; None for a table with neither paper numbers nor claims.

    Args:
        measured: the columns that have the paper's numbers beside them.
        home: all of it was measured on the paper's own model, so that margins in the paper's units mean something.
    """
    by_name = {column.name: column for column in measured}
    if table.paper is None and table.claims:
        return Agreement(False, (), tuple(_verdicts(table, by_name, home=True)))
    if table.paper is None or not any(row.paper for row in table.rows):
        return None
    orderings = [found for column in measured if (found := ordering(table.rows, column)) is not None]
    return Agreement(any(row.group for row in table.rows), tuple(orderings), tuple(_verdicts(table, by_name, home)))


def ordering(rows: Sequence[Row], column: Measured) -> Ordering | None:
    """Agreement of one column; None if no two rows of a group can be compared."""
    groups: dict[str | None, list[tuple[Row, float, float]]] = {}
    for row in rows:
        ours = column.means.get(row.title)
        if row.is_cell and not row.reference and ours is not None and column.name in row.paper:
            groups.setdefault(row.group, []).append((row, row.paper[column.name], ours))
    groups = {group: members for group, members in groups.items() if len(members) > 1}
    if not groups:
        return None
    found = kendall([[(paper, ours) for _, paper, ours in members] for members in groups.values()])
    flips = tuple(
        _flip(column, a, b)
        for members in groups.values()
        for a, b in itertools.combinations(members, 2)
        if (a[1] - b[1]) * (a[2] - b[2]) < 0
    )
    count = sum(map(len, groups.values()))
    return Ordering(column.name, column.label, column.digits, count, found.pairs, found.tau, found.p, found.exact, flips)


def _flip(column: Measured, a: tuple[Row, float, float], b: tuple[Row, float, float]) -> Flip:
    up = column.higher_is_better is not False
    better, worse = (a, b) if (a[1] > b[1]) == up else (b, a)
    names = (worse[0].title, better[0].title)
    values, against = (column.samples.get(name, {}) for name in names)
    apart = difference(values, against) if values and against else None
    return Flip(names[1], names[0], apart or Estimate(worse[2] - better[2], None, 1))


def _verdicts(table: Table, measured: Mapping[str, Measured], home: bool) -> list[Verdict]:
    verdicts = []
    for claim in table.claims:
        column = measured.get(claim.column)
        direction = table.direction(claim.column) if column is None or column.higher_is_better is None else column.higher_is_better
        paper = claim.outcome(table.rows, {row.title: row.paper.get(claim.column) for row in table.rows}, direction)
        ours = claim.outcome(table.rows, column.means if column else {}, direction, home)

        printed = partial(form, digits=table.digits(claim.column))
        own = partial(form, digits=column.digits) if column else printed
        alone = "; order alone" if claim.margin and not claim.relative and not home and ours.numbers else ""
        verdicts.append(Verdict(claim.text, shown(paper, printed) if table.paper else None, shown(ours, own) + alone))
    return verdicts
