"""What every table of a paper implies, without a declaration: averages, repeated cells, claims, and rows above full precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from functools import partial

from vdqbench.report import claims
from vdqbench.report.printed import REMARK, RIGHT, WRONG, Finding, Tables, before, computed, cut, form, identity, once, prints, rounds_to
from vdqbench.report.spec import Row, Table


def averages(table: Table, tables: Tables) -> Iterable[Finding]:
    """Printed averages against the mean of their rows; where they differ, whether another print of one of the cells explains it."""
    for row in table.rows:
        if row.average_of is None or not row.paper:
            continue
        members = [other for other in table.rows if row.average_of.selects(other)]
        right = []
        for name, printed in row.paper.items():
            values = [other.paper[name] for other in members if name in other.paper]
            if len(values) != len(members):
                continue
            mean, digits = math.fsum(values) / len(values), table.digits(name)
            if rounds_to(mean, printed, digits):
                right.append(name)
                continue
            text = f"{row.title}, {name}: the {len(values)} rows give {mean:.{digits + 1}f}, printed is {printed:.{digits}f}"
            if cut(mean, digits) == form(printed, digits):
                yield Finding(table.name, "averages", REMARK, f"{text}: the last digit is cut off, not rounded")
                continue
            reasons = [_instead(table, other, name, tables, mean, len(values), printed) for other in members]
            yield Finding(table.name, "averages", WRONG, "; ".join([text, *filter(None, reasons)]))
        if right:
            yield Finding(table.name, "averages", RIGHT, f"{row.title}: {', '.join(right)} are the means of {len(members)} rows")


def _instead(table: Table, row: Row, name: str, tables: Tables, mean: float, n: int, printed: float) -> str:
    """What the mean of n rows becomes with the numbers that other tables print for one of them."""
    digits = table.digits(name)
    prints_of: dict[float, list[str]] = {}
    for elsewhere, twin in prints(table, row, tables):
        if name in twin.paper and twin.paper[name] != row.paper[name]:
            prints_of.setdefault(twin.paper[name], []).append(elsewhere.name)
    reasons = []
    for value, names in prints_of.items():
        corrected = mean + (value - row.paper[name]) / n
        verdict = "which is the printed average" if rounds_to(corrected, printed, digits) else "which is not the printed average either"
        reasons.append(
            f"with {form(value, digits)}, the number of {row.title} in {' and '.join(names)}, instead of {form(row.paper[name], digits)} "
            f"they give {corrected:.{digits}f}, {verdict}"
        )
    return "; ".join(reasons)


def reprinted(table: Table, tables: Tables) -> Iterable[Finding]:
    """Cells that a later table prints again: whether with the same numbers."""
    for row in table.rows:
        for other, twin in prints(table, row, tables):
            if not before(table, other, tables):
                continue
            shared = [name for name in row.paper if name in twin.paper]
            if not shared:
                continue
            off = [name for name in shared if row.paper[name] != twin.paper[name]]
            same = f"{row.title} and {twin.title} of {other.name} are one cell"
            if off:
                pairs = ", ".join(
                    f"{n} {form(row.paper[n], table.digits(n))} here and {form(twin.paper[n], other.digits(n))} there" for n in off
                )
                yield Finding(table.name, "cells printed twice", WRONG, f"{same}: {pairs}")
            else:
                yield Finding(table.name, "cells printed twice", RIGHT, f"{same}: {', '.join(shared)} agree")


def coinciding(table: Table, tables: Tables) -> Iterable[Finding]:
    """Different cells with the same numbers, to the digit, in all they share, where these numbers occur once in each table."""
    for other in tables.values():
        if not before(table, other, tables):
            continue
        for row, twin in itertools.product(table.rows, other.rows):
            shared = [name for name in row.paper if name in twin.paper]
            if len(shared) < 2 or identity(table, row) == identity(other, twin) or row.average_of or twin.average_of:
                continue
            if all(row.paper[n] == twin.paper[n] and once(table, n, row.paper[n]) and once(other, n, twin.paper[n]) for n in shared):
                numbers = ", ".join(f"{n} {form(row.paper[n], table.digits(n))}" for n in shared)
                text = f"{row.title} has the numbers of {twin.title} of {other.name}, which is another cell: {numbers}"
                yield Finding(table.name, "different cells, same numbers", WRONG, text)


def borne_out(table: Table) -> Iterable[Finding]:
    """The paper's claims, in its own numbers."""
    for claim in table.claims:
        values = {row.title: row.paper.get(claim.column) for row in table.rows}
        outcome = claim.outcome(table.rows, values, table.direction(claim.column))
        state = {claims.HOLDS: RIGHT, claims.FAILS: WRONG}.get(outcome.state, REMARK)
        shown = claims.shown(outcome, partial(form, digits=table.digits(claim.column)))
        yield Finding(table.name, "claims", state, f"{claim.text}: {shown}")


def above_reference(table: Table) -> Iterable[Finding]:
    """Quantized rows that are better than full precision: what they are better by is noise of the metric."""
    reference = next((row for row in table.rows if row.reference and row.paper), None)
    for name in reference.paper if reference else ():
        up = table.direction(name)
        if reference is None or up is None or computed(table, name) or table.printing(name)[0].ratio:
            continue
        gains = {
            row.title: (row.paper[name] - reference.paper[name]) * (1 if up else -1)
            for row in table.rows
            if row.average_of is None and row is not reference and name in row.paper
        }
        better = {title: gain for title, gain in gains.items() if gain > 0}
        if better:
            most = max(better, key=lambda title: better[title])
            yield Finding(
                table.name,
                "better than full precision",
                REMARK,
                f"{name}: {len(better)} of {len(gains)} quantized rows are better than {reference.title}, {most} by "
                f"{form(better[most], table.digits(name))}",
            )
