"""How figures look: colours that colour-blind readers tell apart, small type, no ornament; drawn without any global state."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, RED, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9A9A9A", "#333333"
"""Of Okabe and Ito's palette, but for the greys."""
SEQUENTIAL, DIVERGING = "viridis", "PuOr"
WIDTH, DPI = 9.5, 110
COLUMNS = 4
"""Panels beside each other."""
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "vdqbench",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigError(f"figures need matplotlib ({error}); install it with pip install 'vdqbench[figures]'") from error
    with matplotlib.rc_context(STYLE):
        yield


def figure(height: float, **options: Any) -> Figure:
    """An empty figure of the common width and a height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", **options)


def panels(count: int, height: float = 1.75, columns: int = COLUMNS, **options: Any) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels of a height in inches, row by row."""
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    made = figure(height * rows + 0.5)
    grid = made.subplots(rows, columns, squeeze=False, **options)
    axes = [axis for row in grid for axis in row]
    for spare in axes[count:]:
        spare.set_axis_off()
    return made, axes[:count]


def depth_colours(count: int) -> list[Any]:
    """From the first (dark) to the last (light) of so many lines; the lightest end of the scale, hard to see on white, is left out."""
    from matplotlib import colormaps

    scale = colormaps[SEQUENTIAL]
    return [scale(0.85 * i / max(count - 1, 1)) for i in range(count)]


def plain_log(axis: Any) -> None:
    """Ticks 1, 2, 5 of each decade, written as numbers, on an axis that is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def widened(values: Sequence[float], least: float = 4.0) -> tuple[float, float]:
    """Limits of a logarithmic axis around positive values, at least this factor apart, so that small changes look small."""
    low, high = min(values), max(values)
    more = math.sqrt(max(least / (high / low), 1.0)) * 1.15
    return low / more, high * more


def png(made: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same figure."""
    stream = io.BytesIO()
    made.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()
