"""A table filled from records: means, paired differences, the paper's numbers, ranks, states and footnotes; no layout yet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vdqbench.record import Record, Sample
from vdqbench.report.agreement import Agreement, Measured, agree
from vdqbench.report.paired import Estimate, averaged, difference, over_prompts
from vdqbench.report.spec import Average, Column, Paper, Row, Table

__all__ = ["Average", "Cell", "Column", "Heading", "Line", "Rendered", "Row", "Table", "rows"]


@dataclass(frozen=True)
class Heading:
    """A column as it is shown: label and direction are the records', unless the table says otherwise.

    Attributes:
        digits: decimals of our numbers.
        paper_digits: decimals of the paper's, as it prints them; None for a column without them.
    """

    score: str
    label: str
    digits: int
    higher_is_better: bool | None
    paper_digits: int | None
    unavailable: bool
    notes: tuple[int, ...] = ()

    @property
    def has_paper(self) -> bool:
        return self.paper_digits is not None

    @property
    def arrow(self) -> str:
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


@dataclass(frozen=True)
class Cell:
    """One score of one row.

    Attributes:
        state: `done`; `failed`, `skipped` or `missing` as the row; `unavailable` (not in this version or not with this
            kernel); `absent` (the record lacks it); `reference` (a comparison with the reference, in the reference's row).
        n: videos that the mean is over.
        difference: to the reference row, paired.
        paper: the paper's number; `paper_difference` is ours minus it, only on the paper's own model.
        rank: 1 best of its group, 2 second best, 0 neither.
        notes: numbers of footnotes.
        interval: 95 % bootstrap interval of the score of a set.
    """

    state: str
    mean: float | None = None
    se: float | None = None
    n: int = 0
    difference: Estimate | None = None
    paper: float | None = None
    paper_difference: float | None = None
    rank: int = 0
    notes: tuple[int, ...] = ()
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Line:
    """One row: `kind` is `cell`, `reference`, `average` or `unavailable`."""

    label: str
    group: str | None
    kind: str
    state: str
    cells: tuple[Cell, ...]
    reason: str | None = None
    key: str | None = None
    cell: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        return f"{self.group} {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Rendered:
    """A filled table, ready for any layout: numbered `footnotes`, which cells and headings refer to, and general `notes`.

    `agreement` is that with a paper's numbers; None where there are none.
    """

    name: str
    title: str
    preset: str | None
    group_label: str
    headings: tuple[Heading, ...]
    lines: tuple[Line, ...]
    footnotes: tuple[str, ...]
    notes: tuple[str, ...]
    agreement: Agreement | None = None


class _Footnotes:
    """Numbers sentences from 1 in the order of their first use."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def rows(table: Table, records: Sequence[Record | None], preset: str | None = None) -> Rendered:
    """Fill a table from the records of its cells, in the order of `table.cells(preset)`; None for a cell that has not run.

    Raises:
        ConfigError: there is no such preset.
        ValueError: the number of records is not that of the cells.
    """
    chosen = table.preset(preset)
    of_cells = [row for row in table.rows if row.is_cell]
    if len(records) != len(of_cells):
        raise ValueError(f"{len(records)} records do not fit the {len(of_cells)} cells of table {table.name}; give None for a missing one")
    found = dict(zip((row.title for row in of_cells), records, strict=True))
    notes = _Footnotes()
    headings = _headings(table, chosen.columns, records, notes)
    lines = [_line(table, chosen.columns, headings, row, found, notes) for row in table.rows]
    models = sorted({str(record.cell.get("model")) for record in records if record is not None})
    return Rendered(
        name=table.name,
        title=table.title + (f", measured on {' and '.join(models)}" if models else ", nothing measured"),
        preset=preset,
        group_label=table.group_label,
        headings=headings,
        lines=tuple(_ranked(lines, headings)),
        footnotes=tuple(notes.texts),
        notes=tuple(_general(table, chosen.note, chosen.columns, headings, found, models)),
        agreement=agree(
            table, _measured(table, chosen.columns, headings, lines, found), table.paper is not None and models == [table.paper.model]
        ),
    )


def _measured(
    table: Table, columns: Sequence[Column], headings: Sequence[Heading], lines: Sequence[Line], found: Mapping[str, Record | None]
) -> list[Measured]:
    """The columns that claims and orderings are about; another's stand-in after the original counts once."""
    measured: dict[str, Measured] = {}
    for i, (column, heading) in enumerate(zip(columns, headings, strict=True)):
        name = table.number(column)
        if name is None or column.unavailable:
            continue
        means = {row.title: line.cells[i].mean for row, line in zip(table.rows, lines, strict=True)}
        samples = {} if column.ratio else {title: _samples(column, record) for title, record in found.items() if record is not None}
        measured.setdefault(name, Measured(name, heading.label, heading.digits, heading.higher_is_better, means, samples))
    return list(measured.values())


def _headings(table: Table, columns: Sequence[Column], records: Sequence[Record | None], notes: _Footnotes) -> tuple[Heading, ...]:
    headings = []
    for column in columns:
        entries = [record.scores[column.score] for record in records if record is not None and column.score in record.scores]
        label = column.label or next((entry["label"] for entry in entries if entry.get("label")), column.score)
        told = next((entry["higher_is_better"] for entry in entries if "higher_is_better" in entry), column.higher_is_better)
        direction = column.higher_is_better if column.ratio else told
        printed = None if column.paper is None else table.digits(column.paper) if table.paper else column.digits
        headings.append(Heading(column.score, label, column.digits, direction, printed, bool(column.unavailable)))
    for i, column in enumerate(columns):
        if column.unavailable:
            alike = [h.label for c, h in zip(columns, headings, strict=True) if c.unavailable == column.unavailable]
            headings[i] = replace(headings[i], notes=(notes.number(f"{', '.join(alike)}: {column.unavailable}"),))
    return tuple(headings)


def _line(
    table: Table, columns: Sequence[Column], headings: Sequence[Heading], row: Row, found: Mapping[str, Record | None], notes: _Footnotes
) -> Line:
    reference = table.reference(row)
    compared = found[reference.title] if reference is not None and not row.reference else None
    if row.average_of is not None:
        members = [other for other in table.rows if row.average_of.selects(other)]
        cells = tuple(_average(c, h, row, members, found, compared, notes) for c, h in zip(columns, headings, strict=True))
        state = "done" if all((record := found.get(m.title)) is not None and record.state == "done" for m in members) else "missing"
        line = Line(row.label, row.group, "average", state, cells)
        at_home = bool(table.paper) and all((record := found.get(m.title)) is None or _at_home(record, table.paper) for m in members)
    elif row.unavailable:
        mark = (notes.number(f"{row.title}: {row.unavailable}"),)
        blank = tuple(Cell("unavailable", notes=mark) for _ in columns)
        line, at_home = Line(row.label, row.group, "unavailable", "unavailable", blank, row.unavailable), False
    else:
        record = found[row.title]
        cells = tuple(_cell(c, h, row, record, compared, notes) for c, h in zip(columns, headings, strict=True))
        state, reason = ("missing", None) if record is None else (record.state, record.reason)
        line = Line(
            row.label if record is None else named(row.label, record),
            row.group,
            "reference" if row.reference else "cell",
            state,
            cells,
            reason,
            *((record.key, record.cell) if record is not None else ()),
        )
        at_home = record is not None and _at_home(record, table.paper)
    return replace(line, cells=tuple(_beside(c, row, cell, at_home) for c, cell in zip(columns, line.cells, strict=True)))


def named(label: str, record: Record) -> str:
    """A label with what must stand beside it, such as `budgeted, 200 iterations`."""
    notes = record.cell.get("notes") or []
    return f"{label} ({'; '.join(notes)})" if notes else label


def _at_home(record: Record, paper: Paper | None) -> bool:
    return paper is not None and record.cell.get("model") == paper.model


def _beside(column: Column, row: Row, cell: Cell, at_home: bool) -> Cell:
    """The cell with the paper's number, and ours minus it where both are of the same model."""
    paper = row.paper.get(column.paper) if column.paper else None
    apart = cell.mean - paper if at_home and paper is not None and cell.mean is not None else None
    return replace(cell, paper=paper, paper_difference=apart)


def _cell(column: Column, heading: Heading, row: Row, record: Record | None, compared: Record | None, notes: _Footnotes) -> Cell:
    if column.unavailable:
        return Cell("unavailable")
    if record is None:
        return Cell("missing")
    if record.state != "done":
        return Cell(record.state, notes=(notes.number(f"{row.title}: {record.state}: {record.reason or 'no reason was recorded'}"),))
    if column.measured and record.cell.get("kernel") == "sim":
        return Cell("unavailable", notes=(notes.number("only measured with integer kernels; kernel=sim computes in floating point"),))
    if column.paired and row.reference:
        return Cell("reference")
    score = record.scores.get(column.score)
    if score is None or score.get("mean") is None or math.isnan(score["mean"]):
        return Cell("absent", notes=(notes.number(f"{row.title}: its record has no {heading.label}; choose the metric that gives it"),))
    if column.ratio:
        return _ratio(column, row, record, compared)
    values = _samples(column, record)
    own = over_prompts(values)
    apart, marks = _compared(column, heading, row, values, compared, notes)
    interval = score.get("interval")
    return Cell(
        "done",
        float(score["mean"]) * column.scale,
        own.se if own else None,
        int(score.get("n") or len(values)),
        apart,
        notes=marks,
        interval=(interval[0] * column.scale, interval[1] * column.scale) if interval else None,
    )


def _ratio(column: Column, row: Row, record: Record, compared: Record | None) -> Cell:
    """How many times smaller the row's score is than the reference row's."""
    of_reference = (record if row.reference else compared) or Record("", {})
    above = of_reference.scores.get(column.score, {}).get("mean")
    below = record.scores[column.score]["mean"]
    return Cell("missing") if above is None or not below else Cell("done", above / below, n=1)


def _samples(column: Column, record: Record) -> dict[Sample, float]:
    """Values by sample in the column's unit."""
    return {sample: value * column.scale for sample, value in record.by_sample(column.score).items()}


def _average(
    column: Column,
    heading: Heading,
    row: Row,
    members: Sequence[Row],
    found: Mapping[str, Record | None],
    compared: Record | None,
    notes: _Footnotes,
) -> Cell:
    """The mean over rows; a row without the score leaves a hole, because a mean of the others would mean something else."""
    if column.unavailable:
        return Cell("unavailable")
    records = [found.get(member.title) for member in members]
    cells = [_cell(column, heading, member, record, None, _Footnotes()) for member, record in zip(members, records, strict=True)]
    holes = [member.title for member, cell in zip(members, cells, strict=True) if cell.mean is None]
    if len(holes) == len(members):
        return Cell("missing")
    if holes:
        return Cell("missing", notes=(notes.number(f"{row.title}: no average, because these rows have no value: {', '.join(holes)}"),))
    samples = averaged([_samples(column, record) for record in records if record is not None])
    own = over_prompts(samples)
    apart, marks = _compared(column, heading, row, samples, compared, notes)
    mean = math.fsum(cell.mean for cell in cells if cell.mean is not None) / len(cells)
    return Cell("done", mean, own.se if own else None, sum(cell.n for cell in cells), apart, notes=marks)


def _compared(
    column: Column, heading: Heading, row: Row, values: Mapping[Sample, float], compared: Record | None, notes: _Footnotes
) -> tuple[Estimate | None, tuple[int, ...]]:
    """The paired difference to the reference, and a footnote if only part of the samples could be paired."""
    if column.paired or column.ratio or compared is None or compared.state != "done" or not values:
        return None, ()
    reference = _samples(column, compared)
    shared = len(values.keys() & reference.keys())
    if shared == len(values) == len(reference):
        return difference(values, reference), ()
    sentence = f"{row.title}: {shared} of {len(values)} videos have a partner in the reference row; {heading.label} is compared over those"
    return difference(values, reference), (notes.number(sentence),)


def _ranked(lines: Sequence[Line], headings: Sequence[Heading]) -> list[Line]:
    """Best and second best of each group, by the digits shown; the reference does not compete, and a tie of all has no winner."""
    groups: dict[str | None, list[int]] = {}
    for i, line in enumerate(lines):
        if line.kind != "reference":
            groups.setdefault(line.group, []).append(i)
    cells = [list(line.cells) for line in lines]
    for j, heading in enumerate(headings):
        if heading.higher_is_better is None:
            continue
        for group in groups.values():
            shown = {i: round(mean, heading.digits) for i in group if (mean := cells[i][j].mean) is not None}
            ranks = sorted(set(shown.values()), reverse=heading.higher_is_better)
            if len(ranks) < 2:
                continue
            for i, value in shown.items():
                rank = ranks.index(value) + 1
                if rank == 1 or (rank == 2 and len(shown) > 2):
                    cells[i][j] = replace(cells[i][j], rank=rank)
    return [replace(line, cells=tuple(each)) for line, each in zip(lines, cells, strict=True)]


def _general(
    table: Table,
    preset_note: str | None,
    columns: Sequence[Column],
    headings: Sequence[Heading],
    found: Mapping[str, Record | None],
    models: Sequence[str],
) -> Iterable[str]:
    """What a reader has to know: sample size, comparison, marks, models, kernel, protocols, source."""
    done = {title: record for title, record in found.items() if record is not None and record.state == "done"}
    yield from _sizes(done)
    differences = any(record.by_sample(c.score) for record in done.values() for c in columns if not c.paired)
    if differences and any(row.reference and row.title in done for row in table.rows):
        yield (
            "beside or below a score: its paired difference to the reference row, same prompts and noise, ± standard error "
            "(sd/√n over n prompts, seeds of a prompt averaged first); * marks a difference of more than two standard errors"
        )
    if any(record.scores.get(c.score, {}).get("interval") for record in done.values() for c in columns):
        yield "in brackets: 95 % bootstrap interval of a score that a whole set of videos has"
    labels = [h.label for c, h in zip(columns, headings, strict=True) if c.paired]
    if labels:
        yield f"{', '.join(labels)}: against the reference's video of the same prompt and noise, so the reference row has none"
    if any(h.higher_is_better is not None for h in headings):
        where = " of its group" if any(row.group for row in table.rows) else ""
        yield f"best{where} bold, second best underlined, by the digits shown; the reference does not compete"
    yield from _conditions(table, models, done.values())
    yield from _protocols(headings, list(done.values()))
    if table.paper is not None:
        where = f"table {table.paper.table}" if table.paper.table.isdigit() else table.paper.table
        yield f"paper: {table.paper.title}, arXiv:{table.paper.arxiv}, {where}"
    yield from (note for note in (table.note, preset_note) if note)


def _sizes(done: Mapping[str, Record]) -> Iterable[str]:
    sizes: dict[str, list[str]] = {}
    for title, record in done.items():
        prompts, seeds = len({v["prompt_id"] for v in record.videos}), len({v["seed"] for v in record.videos})
        first = min((v["seed"] for v in record.videos), default=record.cell.get("seed"))
        text = (
            f"n = {len(record.videos)} videos ({prompts} prompts of {record.cell.get('prompts')}, "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'} each from {first}), sampler {record.cell.get('sampler')}"
        )
        sizes.setdefault(text, []).append(title)
    for text, titles in sizes.items():
        yield text if len(sizes) == 1 else f"{', '.join(titles)}: {text}"


def _conditions(table: Table, models: Sequence[str], done: Iterable[Record]) -> Iterable[str]:
    for model in models:
        if model.startswith("mini_"):
            yield f"{model} is a small model with videos of its own domain: its numbers are not those of a model in a paper"
    if table.paper is not None and any(model != table.paper.model for model in models):
        yield f"the paper's numbers are of {table.paper.model}: they stand beside ours for their pattern, and no difference is formed"
    kernels = {record.cell.get("kernel") for record in done}
    if "sim" in kernels:
        yield "kernel sim: quantization is simulated in floating point, so no latency or memory is shown; sizes and bits are computed"


def _protocols(headings: Sequence[Heading], done: Sequence[Record]) -> Iterable[str]:
    """How each score was taken, once for all scores taken alike; a warning where the rows of a column differ."""
    alike: dict[str, list[str]] = {}
    for heading in headings:
        texts = {_flat(r.scores[heading.score].get("protocol") or {}) for r in done if heading.score in r.scores} - {""}
        if len(texts) > 1:
            yield f"{heading.label}: rows were scored by different protocols and do not compare: {' | '.join(sorted(texts))}"
        for text in texts if len(texts) == 1 else ():
            alike.setdefault(text, []).append(heading.label)
    for text, labels in alike.items():
        yield f"{', '.join(labels)}: {text}"


def _flat(protocol: Mapping[str, Any], prefix: str = "") -> str:
    parts = []
    for name, value in protocol.items():
        if isinstance(value, Mapping):
            parts.append(_flat(value, f"{prefix}{name}."))
        else:
            parts.append(f"{prefix}{name} {_short(value)}")
    return ", ".join(part for part in parts if part)


def _short(value: Any) -> str:
    """A hash by its first eight digits."""
    text = str(value)
    return text[:8] if len(text) >= 32 and all(c in "0123456789abcdef" for c in text) else text
