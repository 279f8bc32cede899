"""What a paper states beside its tables, or what formulas make of them: each function is one check that `audit:` of a table can name."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.quant.bops import Formula, bops, compression, layer_macs
from vdqbench.report.printed import (
    REMARK,
    RIGHT,
    WRONG,
    Finding,
    Tables,
    bits_of,
    count,
    cut,
    form,
    other_table,
    reference_row,
    rounds_to,
    value_of,
)
from vdqbench.report.spec import Table


def difference(table: Table, tables: Tables, of: Sequence[str], column: str, stated: str, says: str) -> Iterable[Finding]:
    """A difference that the text states, to its digits."""
    a, b = (value_of(table, tables, row, column) for row in of)
    digits = len(stated.partition(".")[2])
    state = RIGHT if rounds_to(abs(a - b), float(stated), digits) else WRONG
    numbers = f"|{form(a, table.digits(column))} - {form(b, table.digits(column))}| = {abs(a - b):.{max(digits, table.digits(column))}f}"
    yield Finding(table.name, "stated differences", state, f"{says}: {stated} stated; {of[0]} and {of[1]} on {column}: {numbers}")


def drop(table: Table, tables: Tables, of: Sequence[str], column: str, stated: str, says: str) -> Iterable[Finding]:
    """A relative drop in percent that the text states."""
    a, b = (value_of(table, tables, row, column) for row in of)
    percent = 100 * (a - b) / a
    state = RIGHT if rounds_to(percent, float(stated), len(stated.partition(".")[2])) else WRONG
    yield Finding(
        table.name, "stated differences", state, f"{says}: {stated} % stated; {of[1]} is {percent:.2f} % below {of[0]} on {column}"
    )


def quotient(table: Table, tables: Tables, of: str, over: str, column: str, expected: float, says: str) -> Iterable[Finding]:
    """A quotient of two rows against one that the protocol suggests, to 2 %."""
    value = value_of(table, tables, of, column) / value_of(table, tables, over, column)
    state = RIGHT if abs(value / expected - 1) <= 0.02 else WRONG
    yield Finding(table.name, "quotients", state, f"{says}: {column} of {of} is {value:.2f} times that of {over}, against {expected:g}")


def factor(table: Table, tables: Tables, column: str, by: str, rows: Mapping[str, str], other: str, says: str) -> Iterable[Finding]:
    """Quotients of rows here by rows of another table, which should be one number."""
    values = {a: value_of(table, tables, a, column) / value_of(other_table(table, tables, other), tables, b, by) for a, b in rows.items()}
    spread = max(values.values()) / min(values.values()) - 1
    text = ", ".join(f"{title} {value:.3f}" for title, value in values.items())
    yield Finding(
        table.name,
        "quotients",
        RIGHT if spread <= 0.02 else WRONG,
        f"{says}, {column} divided by {by}: {text}; they differ by {spread:.1%}",
    )


def exceeds(table: Table, tables: Tables, row: str, bound: str, columns: Sequence[str], other: str, says: str) -> Iterable[Finding]:
    """A row that should not be better than a row of another table, which has an unfair advantage."""
    beside = other_table(table, tables, other)
    for name in columns:
        a, b = value_of(table, tables, row, name), value_of(beside, tables, bound, name)
        beyond = (a - b) * (1 if table.direction(name) else -1) > 0
        text = f"{row} has {name} {form(a, table.digits(name))}, {bound} of {beside.name}, with {says}, {form(b, beside.digits(name))}"
        yield Finding(table.name, "bounds", WRONG if beyond else RIGHT, f"{text}{': it beats its own upper bound' if beyond else ''}")


def counts(table: Table, tables: Tables, column: str, of: int, samples: int, what: str) -> Iterable[Finding]:
    """Percentages as counts k / n, and whether n is what one sample of each would give."""
    values = {row.title: row.paper[column] for row in table.rows if column in row.paper and row.average_of is None}
    digits = table.digits(column)
    whole = {title: k for title, value in values.items() if (k := count(value, of, digits)) is not None}
    for title in (title for title in values if title not in whole):
        near = round(values[title] * of / 100)
        text = f"{title}: {column} {form(values[title], digits)} is no k/{of}: the nearest, {near}, is {100 * near / of:.{digits + 2}f}"
        note = ", which is cut off instead of rounded" if cut(100 * near / of, digits) == form(values[title], digits) else ""
        yield Finding(table.name, "counts", REMARK if note else WRONG, text + note)
    distinct = {value for title, value in values.items() if title in whole and 0 < value < 100}
    forms = {form(100 * k / (of * samples), digits) for k in range(of * samples + 1)}
    share = len({form(100 * k / of, digits) for k in range(of + 1)} & forms) / len(forms)
    chance = share ** len(distinct)
    text = (
        f"{column}: {len(whole)} of {len(values)} values are k/{of} ({what}), with k = {', '.join(map(str, whole.values()))}; "
        f"of the numbers that {samples} samples of each could give, {share:.0%} are, so that {len(distinct)} different ones are by chance "
        f"with p = {chance:.1g}"
    )
    yield Finding(table.name, "counts", REMARK, text)


def size(table: Table, tables: Tables, column: str, full: float) -> Iterable[Finding]:
    """Sizes as that of full precision times weight bits / full bits."""
    reference = reference_row(table, column)
    yield from _formula(
        table, column, "sizes", f"{column} of {reference.title} x W/{full:g}", lambda w, a: reference.paper[column] * w / full, must=True
    )


def parameters(table: Table, tables: Tables, column: str, full: float, parts: Mapping[str, float]) -> Iterable[Finding]:
    """How many parameters a size in GB, or in Gbit, means in full precision, beside those of known parts of the model."""
    value = reference_row(table, column).paper[column]
    known = ", ".join(f"{name} {count / 1e9:.3f}" for name, count in parts.items())
    text = f"{column} {form(value, table.digits(column))}: {8 * value / full:.3f} x 10^9 parameters if GB, {value / full:.3f} if Gbit"
    fits = [name for name, count in parts.items() for unit in (8, 1) if rounds_to(count * full / unit / 1e9, value, table.digits(column))]
    found = f"which is {' and '.join(fits)}" if fits else "neither is one of these"
    yield Finding(table.name, "sizes", RIGHT if fits else REMARK, f"{text}; {known}: {found}")


def operations(
    table: Table, tables: Tables, column: str, full: float, formulas: Sequence[Formula], first_last: Mapping[str, Any] | None = None
) -> Iterable[Finding]:
    """Bit operations from those of full precision, which give the multiply-accumulates; the first formula is the one to hold.

    Args:
        column: in 10^12.
        full: bits of full precision.
        first_last: `bits` at which convolutions of these `shapes`, at so many `positions`, stay.
    """
    reference = reference_row(table, column)
    for formula in formulas:
        macs = reference.paper[column] / bops(1, full, full, formula)
        name = f"{formula} with {macs:.4f} x 10^12 MACs, from {reference.title}"
        first = formula == formulas[0]
        yield from _formula(table, column, "bit operations", name, partial(_mixed, macs, 0, 0, formula), must=first and not first_last)
        if first and first_last:
            kept = sum(layer_macs(shape, first_last["positions"]) for shape in first_last["shapes"]) / 1e12
            value = partial(_mixed, macs, kept, first_last["bits"], formula)
            yield from _formula(
                table, column, "bit operations", f"{name}, first and last layer at {first_last['bits']} bits", value, must=True
            )


def _mixed(macs: float, kept: float, bits: float, formula: Formula, w: float, a: float) -> float:
    """Bit operations of so many MACs, `kept` of which have `bits` for weights and activations instead of w and a."""
    return bops(macs - kept, w, a, formula) + bops(kept, bits, bits, formula)


def memory(
    table: Table,
    tables: Tables,
    column: str,
    rows: Sequence[str],
    parameters: int,
    weight_bits: float,
    layers: Mapping[str, Sequence[Sequence[int]]],
    candidates: Mapping[str, Mapping[str, Any]],
    full_bits: float = 16,
    parameter_bits: float = 32,
) -> Iterable[Finding]:
    """How much smaller the weights become, for each assumption about what is quantized.

    Args:
        layers: linear layers by name of a group, each [how many, outputs, inputs].
        candidates: by name, `layers` (names of groups, or all) and `group`, the inputs that share a scale (all when left out).
        parameter_bits: of each scale with its zero point.
    """
    printed = {row: value_of(table, tables, row, column) for row in rows}
    for name, options in candidates.items():
        chosen = [one for group in (layers if options["layers"] == "all" else options["layers"]) for one in layers[group]]
        quantized = sum(n * out * inner for n, out, inner in chosen)
        scales = sum(n * out * math.ceil(inner / options.get("group", inner)) for n, out, inner in chosen)
        value = compression(parameters, quantized, scales, weight_bits, full_bits, parameter_bits)
        fits = all(rounds_to(value, number, table.digits(column)) for number in printed.values())
        counted = f"{quantized:,} of {parameters:,} parameters at {weight_bits:g} bits and {scales:,} scales of {parameter_bits:g} bits"
        text = f"{name}: {counted} give {value:.3f} times"
        shown = ", ".join(sorted({form(number, table.digits(column)) for number in printed.values()}))
        verdict = f"{'as printed' if fits else 'not the printed'}, {shown}"
        yield Finding(table.name, "compression", RIGHT if fits else REMARK, f"{text}: {verdict}")


def mix(table: Table, tables: Tables, column: str, row: str, of: Sequence[str], says: str) -> Iterable[Finding]:
    """A speedup of steps of two kinds from those of either kind: times add up, so that their inverses are averaged."""
    printed, (a, b) = value_of(table, tables, row, column), (value_of(table, tables, other, column) for other in of)
    even = 2 / (1 / a + 1 / b)
    share = (1 / a - 1 / printed) / (1 / a - 1 / b)
    state = RIGHT if rounds_to(even, printed, table.digits(column)) else REMARK
    shown = form(printed, table.digits(column))
    text = f"{says}, would give {even:.3f} on {column}; {shown} is printed, which is {share:.0%} of the steps as {of[1]}"
    yield Finding(table.name, "mixtures", state, text)


def monotone(table: Table, tables: Tables, label: str, columns: Sequence[str]) -> Iterable[Finding]:
    """Cells of one method that are worse with more bits for both weights and activations than with fewer."""
    rows = [row for row in table.rows if row.label == label and row.is_cell and row.group]
    if not rows:
        raise ConfigError(f"table {table.name}: audit: monotone.label={label} is no row{nearest(label, {row.label for row in table.rows})}")
    for name in columns:
        up = 1 if table.direction(name) is not False else -1
        worse = []
        for few, many in itertools.permutations(rows, 2):
            (w, a), (v, b) = bits_of(few), bits_of(many)
            loss = (few.paper[name] - many.paper[name]) * up
            if w <= v and a <= b and loss > 0:
                digits = table.digits(name)
                numbers = f"{form(few.paper[name], digits)} at {few.group}, {form(many.paper[name], digits)} at {many.group}"
                worse.append((loss, numbers))
        texts = [text for _, text in sorted(worse, reverse=True)]
        rest = f"; and {len(texts) - 4} more pairs" if len(texts) > 4 else ""
        state, words = (REMARK, f"more bits, worse: {'; '.join(texts[:4])}{rest}") if texts else (RIGHT, "never worse with more bits")
        yield Finding(table.name, "more bits", state, f"{label}, {name}: {words}")


def _formula(table: Table, column: str, check: str, name: str, value: Callable[[float, float], float], must: bool) -> Iterable[Finding]:
    """A column against a function of weight and activation bits, once for each pair of bits; `must`: it is expected to hold."""
    texts, good = [], True
    seen: set[tuple[float, float]] = set()
    for row in table.rows:
        if row.reference or column not in row.paper or not row.is_cell or (pair := bits_of(row)) in seen:
            continue
        seen.add(pair)
        found, digits = value(*pair), table.digits(column)
        fits = rounds_to(found, row.paper[column], digits)
        good &= fits
        differs = "" if fits else ", which differs"
        texts.append(f"{row.group or row.title} {found:.{digits + 2}f} ({form(row.paper[column], digits)} printed{differs})")
    yield Finding(table.name, check, RIGHT if good else WRONG if must else REMARK, f"{column} by {name}: {', '.join(texts)}")


CHECKS: dict[str, Callable[..., Iterable[Finding]]] = {
    "difference": difference,
    "drop": drop,
    "quotient": quotient,
    "factor": factor,
    "exceeds": exceeds,
    "counts": counts,
    "size": size,
    "parameters": parameters,
    "bops": operations,
    "compression": memory,
    "mix": mix,
    "monotone": monotone,
}
