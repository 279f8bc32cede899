"""A filled table in the terminal, Markdown, LaTeX, CSV and JSON; pure functions from `Rendered`, and one that writes them all."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.report import below, layout
from vdqbench.report.table import Rendered
from vdqbench.store import write_atomic

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

CSV_FIELDS = (
    *("table", "preset", "group", "row", "kind", "state", "reason", "key", "model", "method", "bits", "prompts", "kernel"),
    *("score", "label", "higher_is_better", "cell_state", "mean", "se", "n"),
    *("difference", "difference_se", "difference_n", "significant", "paper", "paper_difference", "rank", "low", "high"),
)


def write_all(rendered: Rendered, folder: str | Path) -> list[Path]:
    """Write `<folder>/<name>[-<preset>]` as .md, .csv, .tex and .json, each in one step; returns the paths."""
    stem = rendered.name + (f"-{rendered.preset}" if rendered.preset else "")
    paths = []
    for suffix, to_text in WRITERS.items():
        path = Path(folder) / f"{stem}{suffix}"
        text = to_text(rendered)
        write_atomic(path, lambda file, text=text: file.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        paths.append(path)
    return paths


def to_rich(rendered: Rendered, width: int = 110) -> Group:
    """Title, table and notes for a terminal of so many columns; rules part the groups.

    The standard error stands beside the difference, or below it where the table would be too wide; one that is still too wide is cut
    into several, with the labels of the rows in each.
    """
    from rich.console import Group
    from rich.text import Text

    tables = [_rich_table(part, gap) for part, gap in _fitting(rendered, width)]
    parts: list[RenderableType] = [Text(rendered.title, style="bold"), Text()]
    for table in tables:
        parts += [table, Text()]
    parts.append(Text("\n".join(_notes(rendered)), style="dim"))
    return Group(*parts, *(below.to_rich(rendered.agreement) if rendered.agreement else ()))


def _fitting(rendered: Rendered, width: int) -> list[tuple[Rendered, str]]:
    """The table in parts that fit into the width, each with the gap between difference and standard error."""
    from rich.console import Console

    console = Console(width=10_000)

    def wide(start: int, end: int, gap: str) -> int:
        return console.measure(_rich_table(_part(rendered, start, end), gap)).maximum

    count = len(rendered.headings)
    for gap in (" ", "\n"):
        if wide(0, count, gap) <= width:
            return [(rendered, gap)]
    labels = wide(0, 0, gap)
    parts, start, used = [], 0, labels
    for i in range(count):
        own = wide(i, i + 1, gap) - labels
        if used + own > width and i > start:
            parts.append((_part(rendered, start, i), gap))
            start, used = i, labels
        used += own
    return [*parts, (_part(rendered, start, count), gap)]


def _part(rendered: Rendered, start: int, end: int) -> Rendered:
    """The table with some of its columns."""
    lines = tuple(replace(line, cells=line.cells[start:end]) for line in rendered.lines)
    return replace(rendered, headings=rendered.headings[start:end], lines=lines)


def _rich_table(rendered: Rendered, gap: str) -> Table:
    """The table alone, with `gap` between difference and standard error."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    grouped = _grouped(rendered)
    if grouped:
        table.add_column(Text(rendered.group_label), no_wrap=True)
    table.add_column(Text("row"), no_wrap=True)
    for heading in layout.headings(rendered, compact=True):
        lines = re.sub(r" (?![↑↓])" if gap == " " else r"(?<![↑↓]) ", "\n", heading.value) + _marks(heading.notes).replace(" ", "\n", 1)
        table.add_column(Text(lines, style="dim" if heading.printed else ""), justify="right")
    previous: str | None = None
    for i, line in enumerate(rendered.lines):
        if i and line.group != previous:
            table.add_section()
        group = line.group if line.group and (i == 0 or line.group != previous) else ""
        cells = [_rich(text, gap) for text in layout.cells(rendered, line, compact=True)]
        table.add_row(*([Text(group)] if grouped else []), Text(line.label), *cells)
        previous = line.group
    return table


def _rich(text: layout.Text, gap: str) -> Text:
    from rich.text import Text

    if text.printed:
        return Text("\n".join(part for part in (text.value, text.beside) if part), style="dim")
    shown = Text().append(text.value, style={1: "bold", 2: "underline"}.get(text.rank))
    shown.append(_marks(text.notes).replace(" [", f"{gap}["))
    return shown.append("\n" + text.beside.replace(" ", gap) if text.beside else "", style="dim")


def to_markdown(rendered: Rendered) -> str:
    """A heading, a table and a list of notes."""
    head = ([rendered.group_label] if _grouped(rendered) else []) + ["row"]
    texts = layout.headings(rendered)
    rows = [[*map(_md, head), *(_md(text.value + _marks(text.notes)) for text in texts)]]
    rows.append([":--"] * len(head) + ["--:"] * len(texts))
    for line in rendered.lines:
        label = ([_md(line.group or "")] if _grouped(rendered) else []) + [_md(line.label)]
        rows.append(label + [_md_cell(text) for text in layout.cells(rendered, line)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"- {_md(note)}" for note in _notes(rendered))
    agreement = below.to_markdown(rendered.agreement, _md) if rendered.agreement else ""
    return f"### {_md(rendered.title)}\n\n{table}\n\n{notes}\n{agreement}"


def _md_cell(text: layout.Text) -> str:
    form = {1: "**{}**", 2: "<u>{}</u>"}.get(text.rank, "{}")
    beside = f" ({_md(text.beside)})" if text.beside else ""
    return form.format(_md(text.value)) + _md(_marks(text.notes)) + beside


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>#\[\]])", r"\\\1", re.sub(r"\s+", " ", text))


def to_tex(rendered: Rendered) -> str:
    """A table environment; needs \\usepackage{booktabs}."""
    grouped, texts = _grouped(rendered), layout.headings(rendered)
    head = ([rendered.group_label] if grouped else []) + ["row"]
    out = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(rendered.title)}}}",
        rf"\label{{tab:{re.sub('[^A-Za-z0-9]+', '-', rendered.name)}}}",
        rf"\begin{{tabular}}{{{'l' * len(head)}{'r' * len(texts)}}}",
        r"\toprule",
        _tex_row([*map(_tex, head), *(_tex(text.value) + _tex_marks(text.notes) for text in texts)]),
    ]
    for group, lines in groupby(rendered.lines, key=lambda line: line.group):
        out.append(r"\midrule")
        for i, line in enumerate(lines):
            label = ([_tex(group or "" if i == 0 else "")] if grouped else []) + [_tex(line.label)]
            out.append(_tex_row(label + [_tex_cell(text) for text in layout.cells(rendered, line)]))
    out += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright"]
    out += [f"{_tex(note)}\\par" for note in _notes(rendered)]
    return "\n".join([*out, r"\end{minipage}", r"\end{table}", ""])


def _tex_row(parts: Sequence[str]) -> str:
    return " & ".join(parts) + r" \\"


def _tex_cell(text: layout.Text) -> str:
    form = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(text.rank, "%s")
    beside = f" ({_tex(text.beside)})" if text.beside else ""
    return form % _tex(text.value) + _tex_marks(text.notes) + beside


def _tex_marks(notes: Sequence[int]) -> str:
    return rf"\textsuperscript{{[{', '.join(map(str, notes))}]}}" if notes else ""


TEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}"},
    **{
        "[": "{[}",
        "]": "{]}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
        "×": r"$\times$",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "√": r"$\surd$",
    },
    **{"–": "--", "—": "---", "*": r"\textasteriskcentered{}", '"': "''"},
}


def _tex(text: str) -> str:
    escaped = "".join(TEX.get(c, c) for c in " ".join(text.split()))
    return re.sub(r"(?<![\w.])([+-])(?=\d)", r"$\1$", escaped)


def to_csv(rendered: Rendered) -> str:
    """Tidy: one line per row and score; numbers in full precision, blank where there is none."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    for line in rendered.lines:
        for heading, cell in zip(rendered.headings, line.cells, strict=True):
            apart = cell.difference
            writer.writerow(
                {
                    **{name: (line.cell or {}).get(name) for name in ("model", "method", "bits", "prompts", "kernel")},
                    **{"table": rendered.name, "preset": rendered.preset, "group": line.group, "row": line.label, "kind": line.kind},
                    **{"state": line.state, "reason": line.reason, "key": line.key, "cell_state": cell.state},
                    **{"score": heading.score, "label": heading.label, "higher_is_better": heading.higher_is_better},
                    **{"mean": cell.mean, "se": cell.se, "n": cell.n or None, "rank": cell.rank or None},
                    "difference": apart and apart.mean,
                    "difference_se": apart and apart.se,
                    "difference_n": apart and apart.n,
                    "significant": apart and apart.significant,
                    **{"paper": cell.paper, "paper_difference": cell.paper_difference},
                    **dict(zip(("low", "high"), cell.interval or (None, None), strict=True)),
                }
            )
    return stream.getvalue()


def to_json(rendered: Rendered) -> str:
    """Everything, as strict JSON; a number that is not finite is null."""
    return json.dumps(_finite(asdict(rendered)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


WRITERS: dict[str, Callable[[Rendered], str]] = {".md": to_markdown, ".csv": to_csv, ".tex": to_tex, ".json": to_json}


def _grouped(rendered: Rendered) -> bool:
    return any(line.group for line in rendered.lines)


def _marks(notes: Sequence[int]) -> str:
    return f" [{', '.join(map(str, notes))}]" if notes else ""


def _notes(rendered: Rendered) -> list[str]:
    """Numbered footnotes, then the general ones."""
    return [f"[{i}] {text}" for i, text in enumerate(rendered.footnotes, 1)] + list(rendered.notes)
