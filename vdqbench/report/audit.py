"""What a paper's own tables imply, recomputed: nothing here is measured, and nothing is known beforehand.

Every table is checked for averages that do not follow from their rows, cells that are printed twice with different numbers, different
cells with the same numbers, claims that its own numbers do not bear out, and quantized rows that beat full precision. What else can be
recomputed is declared below `audit:` of its YAML, as one entry {CHECK: {options}} each, where CHECK is one of `stated.CHECKS`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.report.implied import above_reference, averages, borne_out, coinciding, reprinted
from vdqbench.report.printed import REMARK, RIGHT, WRONG, Finding, Tables
from vdqbench.report.spec import Table
from vdqbench.report.stated import CHECKS

__all__ = ["REMARK", "RIGHT", "WRONG", "Finding", "audit", "papers", "to_markdown"]


def audit(tables: Tables) -> list[Finding]:
    """Findings about the tables of one paper, by name, in their order.

    Raises:
        ConfigError: an entry of `audit` names a check, an option, a table, a row or a column that is not there.
    """
    found: list[Finding] = []
    for table in tables.values():
        found += [
            *averages(table, tables),
            *reprinted(table, tables),
            *coinciding(table, tables),
            *borne_out(table),
            *above_reference(table),
        ]
        for entry in table.audit:
            found += _declared(entry, table, tables)
    return found


def _declared(entry: Mapping[str, Any], table: Table, tables: Tables) -> Iterable[Finding]:
    where = f"table {table.name}: audit"
    if len(entry) != 1:
        raise ConfigError(f"{where}: an entry must be one {{CHECK: {{options}}}}, not {dict(entry)}")
    ((name, options),) = entry.items()
    if name not in CHECKS:
        raise ConfigError(f"{where}: {name} is not a check{nearest(name, CHECKS)}")
    known = list(inspect.signature(CHECKS[name]).parameters)[2:]
    for key in options:
        if key not in known:
            raise ConfigError(f"{where}: {name}.{key} is not an option{nearest(str(key), known)}")
    try:
        return list(CHECKS[name](table, tables, **options))
    except TypeError as error:
        raise ConfigError(f"{where}: {name}: {str(error).rpartition('() ')[2]}") from error


def papers(conf: Path) -> dict[str, dict[str, Table]]:
    """All shipped tables with a paper's numbers, by folder and name."""
    import yaml

    found: dict[str, dict[str, Table]] = {}
    for file in sorted(
        (conf / "table").glob("*/*.yaml"), key=lambda file: (file.parent.name, not file.stem.startswith("table"), file.stem)
    ):
        table = Table.from_config(yaml.safe_load(file.read_text(encoding="utf-8")))
        if table.paper is not None:
            found.setdefault(file.parent.name, {})[table.name] = table
    return found


def to_markdown(found: Mapping[str, Sequence[Finding]], tables: Mapping[str, Tables]) -> str:
    """The page: for each paper what does not follow, what is worth knowing, and what was recomputed and agrees."""
    parts = [
        "# What the papers' own tables imply\n",
        "Recomputed from the numbers that the papers print, by `vdqbench audit`; nothing here was measured. The numbers and the\n"
        "statements are in `conf/table/`, the checks in `vdqbench/report/audit.py`.\n",
    ]
    for name, findings in found.items():
        paper = next(iter(tables[name].values())).paper
        assert paper is not None
        values = sum(len(row.paper) for table in tables[name].values() for row in table.rows)
        parts.append(f"## {paper.title} (arXiv:{paper.arxiv})\n\n{len(tables[name])} tables, {values} printed numbers.\n")
        for state, heading in ((WRONG, "Does not follow"), (REMARK, "Worth knowing"), (RIGHT, "Recomputed, and agrees")):
            lines = [f"- {_md(f.table.rpartition('/')[2])}, {f.check}: {_md(f.text)}" for f in findings if f.state == state]
            if lines:
                parts.append(f"### {heading} ({len(lines)})\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _md(text: str) -> str:
    return re.sub(r"([\\`*_|<>#\[\]])", r"\\\1", text)
