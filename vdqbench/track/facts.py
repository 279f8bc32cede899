"""What is known of a cell when it is published: its record, that of its reference, and the numbers of papers that stand beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from vdqbench.record import Record
from vdqbench.score import needs_references
from vdqbench.store import key_of

LAYOUT = 1
"""Version of what is sent; raise it when a run would look different."""


@dataclass(frozen=True)
class Facts:
    """Everything that goes into the run of a cell.

    Attributes:
        reference: the record of the same cell in full precision; None if there is none that is done, or if it is this one.
        paper: printed numbers by score, of the finished tables that have this cell; `apart` is ours minus them, on the paper's own model.
        tables: names of those tables.
    """

    folder: Path
    record: Record
    reference: Record | None = None
    paper: Mapping[str, float] = field(default_factory=dict)
    apart: Mapping[str, float] = field(default_factory=dict)
    tables: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read them for the cell of a run folder, `<out>/runs/<model>/<cell>`.

        Raises:
            OSError, ValueError, KeyError, TypeError: the folder holds no record.
        """
        record, out = Record.load(folder / "record.json"), folder.parents[2]
        study = record.config.get("study")
        names: list[str] = []
        paper: dict[str, float] = {}
        apart: dict[str, float] = {}
        for table in sorted(_tables(out), key=lambda table: table["name"] != study):
            for line in table["lines"]:
                if line["key"] != record.key:
                    continue
                names.append(table["name"])
                for heading, cell in zip(table["headings"], line["cells"], strict=True):
                    score = heading["score"]
                    if score in paper or cell["paper"] is None or not _alike(cell["mean"], record, score):
                        continue
                    paper[score] = cell["paper"]
                    if cell["paper_difference"] is not None:
                        apart[score] = cell["paper_difference"]
        return cls(folder, record, _reference(record, folder), paper, apart, tuple(dict.fromkeys(names)))

    @property
    def group(self) -> str | None:
        """The table or sweep that the cell was run in, else the first table that has it."""
        return self.record.config.get("study") or next(iter(self.tables), None)

    @property
    def reference_folder(self) -> Path | None:
        """The run folder of the reference."""
        return None if self.reference is None else _folder(self.folder, self.reference.key)

    def compares(self, score: str) -> bool:
        """Whether a score has the reference in it already, so that a difference to the reference's own would mean nothing."""
        metric = self.record.scores[score].get("metric")
        options = (self.record.config.get("metric") or {}).get(metric)
        return options is not None and needs_references(options)

    def fingerprint(self, options: Mapping[str, Any]) -> str:
        """Changes whenever the run would."""
        beside = None if self.reference is None else [self.reference.key, self.reference.to_dict()["scores"]]
        return key_of([LAYOUT, self.record.to_dict(), beside, dict(self.paper), dict(self.apart), self.tables, dict(options)])


def _reference(record: Record, folder: Path) -> Record | None:
    key = record.keys.get("reference")
    if key in (None, record.key):
        return None
    try:
        found = Record.load((_folder(folder, str(key)) or folder / "nothing") / "record.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.state == "done" and found.key == key else None


def _folder(beside: Path, key: str) -> Path | None:
    """The run folder of another cell of the same model."""
    return next(iter(sorted(beside.parent.glob(f"*-{key}"))), None)


def _tables(out: Path) -> Iterator[dict[str, Any]]:
    """The finished tables of a results folder."""
    for path in sorted((out / "tables").rglob("*.json")):
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            if {"name", "lines", "headings"} <= table.keys():
                yield table
        except (OSError, ValueError, AttributeError):
            continue


def _alike(mean: float | None, record: Record, score: str) -> bool:
    """Whether a table shows the record's own number: a column may be in another unit or a ratio, and a table older than the record."""
    own = record.scores.get(score, {}).get("mean")
    return mean is not None and own is not None and math.isclose(mean, own, rel_tol=1e-9)
