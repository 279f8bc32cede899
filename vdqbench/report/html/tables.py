"""Finished tables: read back from the JSON that was written beside them, and laid out by the same code as everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from vdqbench.report import below, layout
from vdqbench.report.agreement import Agreement, Flip, Ordering, Verdict
from vdqbench.report.paired import Estimate
from vdqbench.report.table import Cell, Heading, Line, Rendered

T = TypeVar("T")


def read_table(data: Mapping[str, Any]) -> Rendered:
    """The inverse of `render.to_json`; keys that a later version added are left aside.

    Raises:
        TypeError, KeyError: it is not a table.
    """
    lines = tuple(_build(Line, line, cells=tuple(_cell(cell) for cell in line["cells"])) for line in data["lines"])
    headings = tuple(_build(Heading, heading, notes=tuple(heading["notes"])) for heading in data["headings"])
    if any(len(line.cells) != len(headings) for line in lines):
        raise TypeError("a line has another number of cells than the table has headings")
    return _build(
        Rendered,
        data,
        headings=headings,
        lines=lines,
        footnotes=tuple(map(str, data["footnotes"])),
        notes=tuple(map(str, data["notes"])),
        agreement=_agreement(data["agreement"]) if data.get("agreement") else None,
    )


def _build(kind: type[T], data: Mapping[str, Any], **replaced: Any) -> T:
    """The dataclass, from the keys of the mapping that it has."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{**{name: value for name, value in data.items() if name in known}, **replaced})


def _cell(data: Mapping[str, Any]) -> Cell:
    apart, interval = data.get("difference"), data.get("interval")
    return _build(
        Cell,
        data,
        difference=_build(Estimate, apart) if apart else None,
        interval=(float(interval[0]), float(interval[1])) if interval else None,
        notes=tuple(data.get("notes") or ()),
    )


def _agreement(data: Mapping[str, Any]) -> Agreement:
    orderings = tuple(
        _build(Ordering, each, flips=tuple(_build(Flip, flip, apart=_build(Estimate, flip["apart"])) for flip in each["flips"]))
        for each in data["orderings"]
    )
    return Agreement(bool(data["grouped"]), orderings, tuple(_build(Verdict, each) for each in data["verdicts"]))


def laid_out(rendered: Rendered) -> dict[str, Any]:
    """Texts of a table in the order of its columns, as JSON can hold them."""
    agreement = rendered.agreement
    return {
        "name": rendered.name + (f"-{rendered.preset}" if rendered.preset else ""),
        "title": rendered.title,
        "group": rendered.group_label if any(line.group for line in rendered.lines) else None,
        "headings": [_text(text) for text in layout.headings(rendered)],
        "lines": [
            {
                **{"label": line.label, "group": line.group, "kind": line.kind, "state": line.state},
                "id": f"{(line.cell or {}).get('method')}-{line.key}" if line.key else None,
                "cells": [_text(text) for text in layout.cells(rendered, line)],
            }
            for line in rendered.lines
        ],
        "footnotes": list(rendered.footnotes),
        "notes": list(rendered.notes),
        "agreement": agreement
        and {
            "heading": below.heading(agreement),
            "explanation": below.explanation(agreement),
            "orders": {"head": below.ORDER, "rows": below.orders(agreement)},
            "claims": dict(zip(("head", "rows"), below.verdicts(agreement), strict=True)),
        },
    }


def _text(text: layout.Text) -> dict[str, Any]:
    """Only what is there."""
    parts = {"value": text.value, "beside": text.beside, "notes": list(text.notes), "rank": text.rank, "printed": text.printed}
    return {name: value for name, value in parts.items() if value or name == "value"}
