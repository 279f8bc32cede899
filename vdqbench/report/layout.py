"""The text of a filled table's cells, before any markup: what every human-readable renderer shares."""

from __future__ import annotations

from dataclasses import dataclass

from vdqbench.report.table import Cell, Heading, Line, Rendered

STATE_TEXT = {"missing": "not run", "unavailable": "n/a", "absent": "n/a", "reference": "–"}


@dataclass(frozen=True)
class Text:
    """A cell in parts, for a renderer to mark up: `value`, `beside` (difference ± error, or interval), numbers of footnotes, rank."""

    value: str
    beside: str = ""
    notes: tuple[int, ...] = ()
    rank: int = 0
    printed: bool = False


def headings(rendered: Rendered, compact: bool = False) -> list[Text]:
    """Headings of the score columns; the paper's number has a column of its own after ours (`printed`).

    With `compact`, a column that this version cannot measure is left out where the paper's stands for it.
    """
    texts = []
    for heading in rendered.headings:
        label = f"{heading.label} {heading.arrow}".strip()
        merged = _merged(heading, compact)
        if not merged:
            texts.append(Text(label, notes=heading.notes))
        if heading.has_paper:
            texts.append(Text(f"{label} paper" if merged else "paper", notes=heading.notes if merged else (), printed=True))
    return texts


def cells(rendered: Rendered, line: Line, compact: bool = False) -> list[Text]:
    """Texts of a line, one per heading."""
    texts = []
    for heading, cell in zip(rendered.headings, line.cells, strict=True):
        if not _merged(heading, compact):
            texts.append(_ours(cell, heading.digits))
        if heading.paper_digits is not None:
            texts.append(_paper(cell, heading.digits, heading.paper_digits))
    return texts


def number(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many decimals; zero has no minus sign."""
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"


def _merged(heading: Heading, compact: bool) -> bool:
    return compact and heading.unavailable and heading.has_paper


def _ours(cell: Cell, digits: int) -> Text:
    if cell.mean is None:
        return Text(STATE_TEXT.get(cell.state, cell.state), notes=cell.notes)
    beside = ""
    if cell.difference is not None:
        beside = number(cell.difference.mean, digits, sign=True)
        beside += "*" if cell.difference.significant else ""
        if cell.difference.se is not None:
            beside += f" ±{number(cell.difference.se, digits)}"
    elif cell.interval is not None:
        beside = "[" + ", ".join(number(bound, digits) for bound in cell.interval) + "]"
    return Text(number(cell.mean, digits), beside, cell.notes, cell.rank)


def _paper(cell: Cell, digits: int, printed: int) -> Text:
    if cell.paper is None:
        return Text("", printed=True)
    beside = "" if cell.paper_difference is None else f"ours {number(cell.paper_difference, digits, sign=True)}"
    return Text(number(cell.paper, printed), beside, printed=True)
