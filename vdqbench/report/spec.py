"""A table as data: which cells are its rows, which scores its columns, and what the paper printed. Read from `conf/table`.

name: mine
title: What my method does
base: [model=mini_stdit, prompts=shapes_small]          # overrides of every cell
presets: {mini: {overrides: [...], columns: [...], note: ...}}      # overrides come after base; columns replace the table's
columns: [{score: clipsim, digits: 4, paper: clipsim}, {score: vqa_a, label: VQA-a, unavailable: metric not available yet}]
rows:
  - {label: FP16, overrides: [method=fp], reference: true, paper: {clipsim: 0.1998}}
  - {label: Mine, group: 8/8, overrides: [method=mine, bits=w8a8]}
  - {label: Mine, group: Average, average_of: {label: Mine}}
  - {product: {bits: [w8a8, w4a8], method: "*"}, without: [fp]}      # a row for each pair: group w8a8, label of each method
  - {label: Theirs, group: 8/8, unavailable: its code was never released, paper: {clipsim: 0.1990}}
claims: ["Mine > FP16 on clipsim, mean over all"]                    # of the paper, see vdqbench.report.claims
audit: [{difference: {of: [FP16, 8/8 Theirs], column: clipsim, stated: "0.0008"}}]      # of the paper, see vdqbench.report.audit
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Self, TypeVar

from vdqbench.config import CONF
from vdqbench.errors import ConfigError, nearest
from vdqbench.report.claims import Claim, parse

T = TypeVar("T")


@dataclass(frozen=True)
class Column:
    """A score of the records.

    Attributes:
        score: its name in the records.
        label: heading; None for the label in the records.
        digits: decimals shown.
        higher_is_better: direction where no record tells it.
        paper: name under which the rows give the paper's number.
        paired: the score itself compares with the reference, so no difference to the reference row is shown.
        measured: it only means something with kernels that really compute in integers.
        unavailable: why it cannot be had in this version.
        scale: brings the record's unit to the column's, such as 0.001 from MB to GB.
        ratio: shown is the reference row's value divided by the row's own, such as a speedup.
    """

    score: str
    label: str | None = None
    digits: int = 3
    higher_is_better: bool | None = None
    paper: str | None = None
    paired: bool = False
    measured: bool = False
    unavailable: str | None = None
    scale: float = 1.0
    ratio: bool = False


@dataclass(frozen=True)
class Average:
    """Selects the rows that an average row is computed over: those with one of the labels and, if given, of the groups."""

    labels: tuple[str, ...]
    groups: tuple[str, ...] = ()

    def selects(self, row: Row) -> bool:
        return row.average_of is None and row.label in self.labels and (not self.groups or row.group in self.groups)


@dataclass(frozen=True)
class Row:
    """A cell, by its overrides, the average of other rows, or one that cannot be run here, with the reason.

    `paper` holds the paper's numbers by their names.
    """

    label: str
    group: str | None = None
    overrides: tuple[str, ...] = ()
    reference: bool = False
    average_of: Average | None = None
    unavailable: str | None = None
    paper: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_cell(self) -> bool:
        return bool(self.overrides)

    @property
    def title(self) -> str:
        """Label with its group, unique in a table."""
        return f"{self.group} {self.label}" if self.group else self.label


@dataclass(frozen=True)
class Preset:
    """Other conditions for the whole table; its columns, if any, take the place of the table's."""

    overrides: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    note: str | None = None


@dataclass(frozen=True)
class Paper:
    """Where the printed numbers come from, and the `model` option that they were measured on."""

    title: str
    arxiv: str
    table: str
    model: str


@dataclass(frozen=True)
class Table:
    """A study: its cells, its scores and their layout; of a paper's, also what it claims and what can be recomputed."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    base: tuple[str, ...] = ()
    presets: Mapping[str, Preset] = field(default_factory=dict)
    group_label: str = ""
    note: str | None = None
    paper: Paper | None = None
    claims: tuple[Claim, ...] = ()
    audit: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a plain mapping as composed from `conf/table`.

        Raises:
            ConfigError: an unknown or missing key, a row that is neither a cell nor an average nor unavailable, two rows of one
                name, a paper's number that no column shows, an average of nothing, or a claim about what is not there.
        """
        values = dict(config)
        where = f"table {values.get('name', '')}".strip()
        values["columns"] = _columns(values.get("columns"), where)
        rows = [row for node in _list(values.get("rows"), f"{where}: rows") for row in _expanded(node, where)]
        values["rows"] = tuple(_row(row, where) for row in rows)
        values["base"] = _strings(values.get("base", ()), f"{where}: base")
        values["presets"] = {name: _preset(node, f"{where}: preset {name}") for name, node in (values.get("presets") or {}).items()}
        if values.get("paper") is not None:
            paper = {key: str(value) for key, value in _mapping(values["paper"], f"{where}: paper").items()}
            values["paper"] = _build(Paper, paper, f"{where}: paper")
        values["claims"] = tuple(parse(text, f"{where}: claims") for text in values.get("claims") or ())
        values["audit"] = tuple(_mapping(node, f"{where}: audit") for node in values.get("audit") or ())
        table = _build(cls, values, where)
        table._check(where)
        return table

    def preset(self, name: str | None) -> Preset:
        """The preset of this name with the table's columns where it has none of its own; the table itself for None.

        Raises:
            ConfigError: there is no such preset.
        """
        if name is None:
            return Preset((), self.columns)
        if name not in self.presets:
            known = nearest(name, self.presets) if self.presets else " (it has none)"
            raise ConfigError(f"preset={name} is not a preset of table {self.name}{known}")
        chosen = self.presets[name]
        return Preset(chosen.overrides, chosen.columns or self.columns, chosen.note)

    def cells(self, preset: str | None = None) -> list[list[str]]:
        """Overrides of every row that is a cell, in order: those of the table, of the preset, of the row."""
        return [[*self.base, *self.preset(preset).overrides, *row.overrides] for row in self.rows if row.is_cell]

    def printing(self, name: str) -> list[Column]:
        """The columns that show the numbers of this name: the table's own, then those of presets."""
        every = (self.columns, *(preset.columns for preset in self.presets.values()))
        return [column for columns in every for column in columns if self.number(column) == name]

    def number(self, column: Column) -> str | None:
        """The name of a column's numbers in claims: the paper's; in a table without a paper, the score's."""
        return column.score if self.paper is None else column.paper

    def digits(self, name: str) -> int:
        """Decimals that the paper prints under this name."""
        return self.printing(name)[0].digits

    def direction(self, name: str) -> bool | None:
        """Whether higher numbers of this name are better, as far as the table tells."""
        return next((c.higher_is_better for c in self.printing(name) if c.higher_is_better is not None), None)

    def reference(self, row: Row) -> Row | None:
        """The row that a row is compared with: the reference of its own group if there is one, else the first of the table."""
        references = [other for other in self.rows if other.reference]
        return next((other for other in references if other.group == row.group), references[0] if references else None)

    def _check(self, where: str) -> None:
        every = [column for columns in (self.columns, *(p.columns for p in self.presets.values())) for column in columns]
        printed = {column.paper for column in every}
        seen = set()
        for row in self.rows:
            if row.title in seen:
                raise ConfigError(f"{where}: row {row.title!r} stands there twice; give each row of a group its own label")
            seen.add(row.title)
            for name in row.paper:
                if name not in printed:
                    raise ConfigError(
                        f"{where}: row {row.title!r} has paper.{name}, which no column shows{nearest(name, [p for p in printed if p])}"
                    )
            if row.average_of is not None and not any(row.average_of.selects(other) for other in self.rows):
                raise ConfigError(f"{where}: row {row.title!r} is an average_of no row; label and group must be those of other rows")
        for claim in self.claims:
            claim.check(self.rows, [number for column in every if (number := self.number(column))], f"{where}: claims")


def _build(kind: type[T], node: Mapping[str, Any], where: str) -> T:
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    for key in node:
        if key not in known:
            raise ConfigError(f"{where}: {key} is not a key here{nearest(str(key), known)}")
    for name, f in known.items():
        if f.default is MISSING and f.default_factory is MISSING and node.get(name) is None:
            raise ConfigError(f"{where}: {name} is missing")
    return kind(**node)


def _mapping(node: Any, where: str) -> dict[str, Any]:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} must be a mapping, not {node!r}")
    return dict(node)


def _list(node: Any, where: str) -> list[Any]:
    if not isinstance(node, list | tuple) or not node:
        raise ConfigError(f"{where} must be a list with at least one entry, not {node!r}")
    return list(node)


def _strings(node: Any, where: str) -> tuple[str, ...]:
    if node is None:
        return ()
    if not isinstance(node, list | tuple) or not all(isinstance(item, str) for item in node):
        raise ConfigError(f"{where} must be a list of overrides such as [model=mini_stdit, bits=w8a8], not {node!r}")
    return tuple(node)


def _columns(node: Any, where: str) -> tuple[Column, ...]:
    columns = tuple(_build(Column, _mapping(item, f"{where}: a column"), f"{where}: columns") for item in _list(node, f"{where}: columns"))
    for column in columns:
        if not isinstance(column.digits, int) or not 0 <= column.digits <= 10:
            raise ConfigError(f"{where}: digits={column.digits} of column {column.score} must be a whole number in 0..10")
        if isinstance(column.scale, bool) or not isinstance(column.scale, int | float) or column.scale <= 0:
            raise ConfigError(f"{where}: scale={column.scale!r} of column {column.score} must be a positive number")
    return columns


def _expanded(node: Any, where: str) -> list[Any]:
    """The rows that an entry stands for: itself, or the product of two config groups, `*` being all shipped options of one."""
    if not isinstance(node, Mapping) or "product" not in node:
        return [node]
    groups = _mapping(node["product"], f"{where}: product")
    without = [str(name) for name in node.get("without", ())]
    if len(groups) != 2 or set(node) - {"product", "without"}:
        raise ConfigError(
            f"{where}: product must name two config groups, such as {{bits: [w8a8], method: '*'}}, and may have `without` beside it"
        )
    options = {}
    for group, listed in groups.items():
        every = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
        chosen = every if listed == "*" else [str(name) for name in _list(listed, f"{where}: product.{group}")]
        for name in without if listed == "*" else ():
            if name not in every:
                raise ConfigError(f"{where}: without={name} is not an option of {group}{nearest(name, every)}")
        options[group] = [name for name in chosen if name not in without]
    (first, outer), (second, inner) = options.items()
    return [{"group": a, "label": b, "overrides": [f"{first}={a}", f"{second}={b}"]} for a in outer for b in inner]


def _row(node: Any, where: str) -> Row:
    values = _mapping(node, f"{where}: a row")
    title = f"{where}: row {values.get('label')!r}"
    values |= {name: str(values[name]) for name in ("label", "group") if values.get(name) is not None}
    values["overrides"] = _strings(values.get("overrides", ()), f"{title}: overrides")
    average = values.get("average_of")
    if sum((average is not None, bool(values["overrides"]), bool(values.get("unavailable")))) != 1:
        raise ConfigError(f"{title} must have either overrides, which make it a cell, or average_of, or unavailable with the reason")
    if average is not None:
        selector = _mapping(average, f"{title}: average_of")
        for key in selector:
            if key not in ("label", "group"):
                raise ConfigError(f"{title}: average_of.{key} is not a key here{nearest(str(key), ['label', 'group'])}")
        values["average_of"] = Average(_names(selector.get("label", values.get("label"))), _names(selector.get("group", ())))
    for key, value in (values.get("paper") or {}).items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{title}: paper.{key}={value!r} must be a number; leave out what the paper does not print")
    values["paper"] = dict(values.get("paper") or {})
    return _build(Row, values, title)


def _names(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str | int | float) else tuple(str(item) for item in value)


def _preset(node: Any, where: str) -> Preset:
    values = _mapping(node, where)
    values["overrides"] = _strings(values.get("overrides", ()), f"{where}: overrides")
    values["columns"] = _columns(values["columns"], where) if values.get("columns") else ()
    return _build(Preset, values, where)
