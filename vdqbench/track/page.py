"""A finished table as HTML, and as rows of texts for a wandb table."""

from __future__ import annotations

from html import escape
from itertools import groupby
from typing import Any

from vdqbench.report import layout
from vdqbench.report.table import Rendered

STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:1em}table{border-collapse:collapse}
th,td{padding:2px 8px;text-align:right;white-space:nowrap}th.l,td.l{text-align:left}thead tr,tbody{border-bottom:1px solid #888}
small,li,.p{color:#666}"""


def rows(rendered: Rendered) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows as texts, as they are printed: group, row, state, then each score and the paper's."""
    head = [rendered.group_label or "group", "row", "state"]
    for heading in rendered.headings:
        label = f"{heading.label} {heading.arrow}".strip()
        for name in [label, f"{heading.label} paper"] if heading.has_paper else [label]:
            head.append(f"{name} ({heading.score})" if name in head else name)
    body = [
        [
            line.group or "",
            line.label,
            line.state,
            *(" ".join(filter(None, (text.value, text.beside))) for text in layout.cells(rendered, line)),
        ]
        for line in rendered.lines
    ]
    return head, body


def to_html(rendered: Rendered) -> str:
    """A page of its own: title, table, notes."""
    grouped = any(line.group for line in rendered.lines)
    labels = ([rendered.group_label] if grouped else []) + ["row"]
    head = "".join(f'<th class="l">{escape(label)}</th>' for label in labels)
    head += "".join(f"<th>{escape(text.value)}{_marks(text)}</th>" for text in layout.headings(rendered))
    body = ""
    for group, lines in groupby(rendered.lines, key=lambda line: line.group):
        body += "<tbody>"
        for i, line in enumerate(lines):
            first = [group or "" if i == 0 else ""] if grouped else []
            body += "<tr>" + "".join(f'<td class="l">{escape(text)}</td>' for text in [*first, line.label])
            body += "".join(_html(text) for text in layout.cells(rendered, line)) + "</tr>\n"
        body += "</tbody>"
    notes = "".join(f"<li>{escape(f'[{i}] {text}')}</li>" for i, text in enumerate(rendered.footnotes, 1))
    notes += "".join(f"<li>{escape(text)}</li>" for text in rendered.notes)
    return (
        f'<!doctype html><meta charset="utf-8"><title>{escape(rendered.name)}</title><style>{STYLE}</style>'
        f"<h3>{escape(rendered.title)}</h3><table><thead><tr>{head}</tr></thead>{body}</table><ul>{notes}</ul>"
    )


def _html(text: layout.Text) -> str:
    value = {1: "<b>{}</b>", 2: "<u>{}</u>"}.get(text.rank, "{}").format(escape(text.value))
    beside = f" <small>{escape(text.beside)}</small>" if text.beside else ""
    return f"<td{' class=p' if text.printed else ''}>{value}{_marks(text)}{beside}</td>"


def _marks(text: layout.Text) -> str:
    return f"<sup>[{', '.join(map(str, text.notes))}]</sup>" if text.notes else ""
