"""What stands below a table: agreement of the orderings with the paper's, and the claims; for the terminal and Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vdqbench.report.agreement import Agreement, Flip, Ordering
from vdqbench.report.layout import number

if TYPE_CHECKING:
    from rich.console import RenderableType

ORDER = ("score", "rows", "tau-b", "p", "pairs the other way round (ours)")
CLAIMS, EXPECTATIONS = ("claim of the paper", "in its own numbers", "in ours"), ("claim", "measured")


def explanation(agreement: Agreement) -> str:
    """What the orderings are and are not."""
    where = " within a group" if agreement.grouped else ""
    return (
        f"Order of the methods, ours against the paper's: Kendall's tau-b over pairs{where}, two-sided p under random order; "
        "* marks a difference of ours of more than two standard errors"
    )


def heading(agreement: Agreement) -> str:
    """Of all of it."""
    compared = agreement.orderings or any(verdict.paper is not None for verdict in agreement.verdicts)
    return "Agreement with the paper" if compared else "What was claimed beforehand"


def orders(agreement: Agreement) -> list[tuple[str, ...]]:
    """One line per score: label, rows, tau, p, flips."""
    return [
        (o.label, str(o.rows), _number(o.tau, sign=True), _p(o), "; ".join(_flip(f, o.digits) for f in o.flips))
        for o in agreement.orderings
    ]


def verdicts(agreement: Agreement) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A head, and one line per claim."""
    if any(v.paper is not None for v in agreement.verdicts):
        return CLAIMS, [(v.claim, v.paper or "", v.ours) for v in agreement.verdicts]
    return EXPECTATIONS, [(v.claim, v.ours) for v in agreement.verdicts]


def to_markdown(agreement: Agreement, escape: Callable[[str], str]) -> str:
    """Two tables, each left out when it is empty."""
    text = ""
    if agreement.orderings:
        text += f"\n{escape(explanation(agreement))}\n\n" + _md_table(ORDER, orders(agreement), escape, "lrrrl")
    if agreement.verdicts:
        head, lines = verdicts(agreement)
        text += "\n" + _md_table(head, lines, escape, "l" * len(head))
    return text


def _md_table(head: Sequence[str], rows: Iterable[Sequence[str]], escape: Callable[[str], str], align: str) -> str:
    lines = [[*map(escape, head)], [{"l": ":--", "r": "--:"}[a] for a in align], *([*map(escape, row)] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def to_rich(agreement: Agreement) -> list[RenderableType]:
    """The same for the terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    def table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> Table:
        made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
        for name, side in zip(head, align, strict=True):
            made.add_column(Text(name), justify={"l": "left", "r": "right"}[side], overflow="fold")  # type: ignore[arg-type]
        for row in rows:
            made.add_row(*map(Text, row))
        return made

    parts: list[RenderableType] = []
    if agreement.orderings:
        parts += [Text("\n" + explanation(agreement), style="dim"), Text(), table(ORDER, orders(agreement), "lrrrl")]
    if agreement.verdicts:
        head, lines = verdicts(agreement)
        parts += [Text(), table(head, lines, "l" * len(head))]
    return parts


def _flip(flip: Flip, digits: int) -> str:
    mark = "*" if flip.apart.significant else ""
    return f"{flip.worse} before {flip.better} ({number(flip.apart.mean, digits, sign=True)}{mark})"


def _number(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else number(value, 2, sign)


def _p(ordering: Ordering) -> str:
    if ordering.p is None:
        return "–"
    return f"{'' if ordering.exact else '≈'}{ordering.p:.2g}" if ordering.p < 0.1 else f"{'' if ordering.exact else '≈'}{ordering.p:.2f}"
