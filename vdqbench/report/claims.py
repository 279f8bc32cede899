"""A paper's claims as statements that can be checked on its own numbers and on ours; in a table without a paper, on ours.

    *+TSQ+TSW > Dynamic on clipsim, mean over all
    8/8 QVD ~ Full Precision on fvd by at most 10 %
    QVD > others on fid_vid, in each of 8/8 and 6/8 by at least 24.5

`>` means better, by the direction of the column, `<` worse, `>=` at least as good; without a direction the larger number counts
as the better one. `~` means as good as, and needs `by at most`. A side is a row's title (group and label), or its label, which
stands for the row of each group named after `mean over` or `in each of`, and for the only row of that label without them. `others`
on the right are all other cells of the same group but the reference. The column is the name of the paper's number, or of the score
in a table without a paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import ConfigError, nearest

if TYPE_CHECKING:
    from vdqbench.report.spec import Row

HOLDS, FAILS, UNKNOWN, FOREIGN = "holds", "does not hold", "not measured", "not comparable"
GRAMMAR = re.compile(
    r"(?P<left>.+?) (?P<sign>>=|>|<|~) (?P<right>.+?) on (?P<column>\w+)"
    r"(?:, (?P<how>mean over|in each of) (?P<groups>.+?))?"
    r"(?: by at (?P<bound>least|most) (?P<margin>\d+(?:\.\d+)?)(?P<percent> ?%)?)?"
)
SLACK = 1e-9
"""Relative size of the rounding errors of differences of printed numbers."""


@dataclass(frozen=True)
class Outcome:
    """`holds`, `does not hold`, `not measured` or `not comparable`, and the numbers (left, right) that say so."""

    state: str
    numbers: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Claim:
    """One statement; `groups` is empty without a scope, and ("all",) for all groups that have both sides."""

    text: str
    left: str
    sign: str
    right: str
    column: str
    how: str | None = None
    groups: tuple[str, ...] = ()
    margin: float | None = None
    relative: bool = False

    def check(self, rows: Sequence[Row], columns: Iterable[str], where: str) -> None:
        """Raises ConfigError if a row, a group or a column is not there, or a label stands for several rows."""
        if self.column not in (known := list(columns)):
            raise ConfigError(f"{where}: {self.text!r} is about {self.column}, which is no number here{nearest(self.column, known)}")
        self.pairs(rows, where)

    def pairs(self, rows: Sequence[Row], where: str) -> list[tuple[Row, list[Row]]]:
        """The row on the left and those it is compared with on the right, group by group."""
        members = [row for row in rows if row.average_of is None]
        if not self.how:
            left = self._row(self.left, members, None, where)
            return [(left, self._right(left, members, None, where))]
        found = [str(row.group) for row in members if row.group and row.label == self.left]
        groups = list(dict.fromkeys(found)) if self.groups == ("all",) else list(self.groups)
        if not groups:
            raise ConfigError(
                f"{where}: {self.text!r} needs a row {self.left!r} in a group{nearest(self.left, {r.label for r in members})}"
            )
        pairs = []
        for group in groups:
            if group not in {row.group for row in members}:
                raise ConfigError(f"{where}: {self.text!r} names no group{nearest(group, {str(r.group) for r in members if r.group})}")
            left = self._row(self.left, members, group, where)
            pairs.append((left, self._right(left, members, group, where)))
        return pairs

    def _right(self, left: Row, rows: Sequence[Row], group: str | None, where: str) -> list[Row]:
        if self.right != "others":
            return [self._row(self.right, rows, group, where)]
        others = [row for row in rows if row.group == left.group and row is not left and not row.reference]
        if not others:
            raise ConfigError(f"{where}: {self.text!r} has no others in the group {left.group}")
        return others

    def _row(self, name: str, rows: Sequence[Row], group: str | None, where: str) -> Row:
        for wanted in (
            [row for row in rows if row.title == name],
            [row for row in rows if row.label == name and row.group == group],
            [row for row in rows if row.label == name],
        ):
            if len(wanted) == 1:
                return wanted[0]
        if wanted:
            raise ConfigError(
                f"{where}: {name!r} in {self.text!r} stands for {len(wanted)} rows; name the group as well: {wanted[0].title}"
            )
        raise ConfigError(f"{where}: {name!r} in {self.text!r} is no row{nearest(name, {r.title for r in rows} | {r.label for r in rows})}")

    def outcome(self, rows: Sequence[Row], values: Mapping[str, float | None], higher_is_better: bool | None, home: bool = True) -> Outcome:
        """Whether it holds for these values by row title.

        Args:
            home: the values are in the paper's units. Elsewhere margins in those units are left out, so that only the order counts;
                a likeness by them says nothing.
        """
        if self.sign == "~" and not self.relative and not home:
            return Outcome(FOREIGN)
        compared = []
        for left, others in self.pairs(rows, "claims"):
            for other in others:
                a, b = values.get(left.title), values.get(other.title)
                if a is None or b is None or not (math.isfinite(a) and math.isfinite(b)):
                    return Outcome(UNKNOWN)
                compared.append((a, b))
        if self.how == "mean over" and self.right != "others":
            compared = [(math.fsum(a for a, _ in compared) / len(compared), math.fsum(b for _, b in compared) / len(compared))]
        better = higher_is_better is not False
        return Outcome(HOLDS if all(self._holds(a, b, better, home) for a, b in compared) else FAILS, tuple(compared))

    def _holds(self, a: float, b: float, better: bool, home: bool) -> bool:
        gain = a - b if better else b - a
        slack = SLACK * max(abs(a), abs(b))
        margin = 0.0 if self.margin is None or not (home or self.relative) else self.margin * (abs(b) / 100 if self.relative else 1)
        if self.sign == "~":
            return abs(gain) <= margin + slack
        if self.sign == ">=":
            return gain >= margin - slack
        gain = gain if self.sign == ">" else -gain
        return gain >= margin - slack and gain > 0


def parse(text: object, where: str) -> Claim:
    """A claim from its text.

    Raises:
        ConfigError: it does not follow the grammar above.
    """
    match = GRAMMAR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(
            f"{where}: {text!r} is not a claim; write ROW > ROW on COLUMN[, mean over GROUP and GROUP][ by at least X], with >, <, >= or ~"
        )
    part = match.groupdict()
    if (part["sign"] == "~") != (part["bound"] == "most"):
        raise ConfigError(f"{where}: {text!r} must have `by at most X` with ~, and with ~ alone")
    if part["right"] == "others" and part["how"] == "mean over":
        raise ConfigError(f"{where}: {text!r} compares with others, so write `in each of` instead of `mean over`")
    groups = tuple(part["groups"].split(" and ")) if part["groups"] else ()
    margin = float(part["margin"]) if part["margin"] else None
    return Claim(
        match.group(), part["left"], part["sign"], part["right"], part["column"], part["how"], groups, margin, bool(part["percent"])
    )


def shown(outcome: Outcome, form: Callable[[float], str], most: int = 3) -> str:
    """State with the numbers behind it, such as `holds (0.1967 against 0.1960)`; of many pairs the first ones."""
    pairs = [f"{form(a)} against {form(b)}" for a, b in outcome.numbers[:most]]
    rest = len(outcome.numbers) - most
    return outcome.state + (f" ({', '.join(pairs)}{f', and {rest} more' if rest > 0 else ''})" if pairs else "")
