"""The plots of a report as files for a paper: the same numbers as in the page, drawn with matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdqbench.errors import ConfigError, nearest
from vdqbench.inspect.style import GREY, INK, SEQUENTIAL, styled
from vdqbench.progress import Progress
from vdqbench.report import series
from vdqbench.report.html.gather import Found
from vdqbench.report.settings import Setting, identity, labels, settings
from vdqbench.store import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#c4540a", "#00855f", "#b0438a", "#8a6d00", "#2f95cf", "#6a51a3", "#5b6470")
MARKERS = ("o", "s", "^", "D", "v", "P", "h")
"""Colour and shape of a series change together; 56 series look different."""
PANEL, HEIGHT, ROOM = 3.4, 2.6, 0.75
"""Inches: a panel is as wide as a column of a paper; legend and title take the room."""
METADATA: dict[str, dict[str, Any]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""What would change from run to run is left out, so that equal records give equal files."""


@dataclass(frozen=True)
class Drawing:
    """A figure that can be drawn: its name without a suffix, and how."""

    name: str
    draw: Any


def write_figures(found: Found, folder: Path, formats: Sequence[str], scores: Sequence[str], progress: Progress) -> list[Path]:
    """Write `<folder>/<setting>/<plot>.<format>` for every plot there are numbers for, each in one step; returns the paths.

    Args:
        formats: of png, svg, pdf.
        scores: names of the scores that are drawn; empty for all.

    Raises:
        ConfigError: matplotlib is missing, or no record has such a score.
    """
    groups = settings(found.records)
    known = {axis.name for setting in groups for axis in series.qualities(setting.records)}
    for name in scores:
        if name not in known:
            raise ConfigError(f"scores={name} is not a score of these records that is better in one direction{nearest(name, known)}")
    with _paper_style():
        drawings = [one for setting in groups for one in drawings_of(setting, found, scores)]
        paths = []
        with progress.stage("figures", len(drawings) * len(formats)) as advance:
            for drawing in drawings:
                figure = drawing.draw()
                for kind in formats:
                    path = folder / f"{drawing.name}.{kind}"
                    content = rendered(figure, kind)
                    write_atomic(path, lambda file, content=content: file.write_bytes(content))  # type: ignore[misc]
                    paths.append(path)
                    advance(1)
    return paths


@contextmanager
def _paper_style() -> Iterator[None]:
    """Type that stays type in a PDF, and names of methods that are no formulas."""
    with styled():
        import matplotlib

        with matplotlib.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "text.parse_math": False}):
            yield


def rendered(figure: Figure, kind: str) -> bytes:
    """A figure as a file of this kind, the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, metadata=METADATA[kind], dpi=200)
    return stream.getvalue()


def drawings_of(setting: Setting, found: Found, scores: Sequence[str] = ()) -> Iterator[Drawing]:
    """All figures of a setting."""
    place = f"{_slug(setting.model)}-{setting.key[:8]}"
    names = labels(found.records)
    for axis in series.qualities(setting.records):
        if scores and axis.name not in scores:
            continue
        if tradeoffs := series.tradeoffs(setting, axis):
            yield Drawing(f"{place}/tradeoff-{axis.name}", lambda t=tradeoffs: tradeoff_figure(setting, t))
        curves = [series.bit_curves(setting, axis), *(series.sweep_curves(setting, kind, axis) for kind in series.SWEEPS)]
        for one in curves:
            if one is not None:
                yield Drawing(f"{place}/{one.kind}-{axis.name}", lambda c=one: curves_figure(setting, c))
    for record in setting.quantized:
        name = names[identity(record)]
        if (heat := series.sqnr_map(record)) is not None:
            title = f"SQNR of {name} by layer and step (dB)"
            yield Drawing(f"{place}/sqnr-{_slug(name)}", lambda h=heat, t=title: heat_figure(h, f"{t}\n{setting.label}", logarithmic=False))
        if (pattern := series.pattern(record)) is not None:
            yield Drawing(f"{place}/pattern-{_slug(name)}", lambda p=pattern, n=name: pattern_figure(p, f"{n}\n{setting.label}"))
    keys = {str(record.keys.get("statistics") or record.keys.get("calibration")) for record in setting.records}
    for key in sorted(keys & set(found.activations)):
        heat = found.activations[key]
        title = f"Largest |input| by layer and step\n{setting.model}"
        yield Drawing(f"{place}/activation_range-{key[:8]}", lambda h=heat, t=title: heat_figure(h, t, logarithmic=True))


def _slug(text: str) -> str:
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_.") or "_"


def _looks(setting: Setting) -> dict[str, dict[str, Any]]:
    """Colour and marker by the record's identity: one look for each method with its options."""
    names = {identity(record): setting.families[identity(record)] for record in setting.records}
    order = list(dict.fromkeys(names.values()))
    return {key: {**look(order.index(name)), "label": name} for key, name in names.items()}


def look(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th series."""
    return {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}


def tradeoff_figure(setting: Setting, tradeoffs: Sequence[series.Tradeoff]) -> Figure:
    """A score against each of its costs; filled points and the line are the Pareto front, bars ± one standard error."""
    figure, panels = _figure(len(tradeoffs))
    looks = _looks(setting)
    for axes, tradeoff in zip(panels, tradeoffs, strict=True):
        best = [next(point for point in tradeoff.points if point.cell == cell) for cell in tradeoff.front]
        axes.step([point.x for point in best], [point.y for point in best], where="post", color=GREY, linestyle="--", linewidth=0.9)
        for point in tradeoff.points:
            style = looks[point.cell]
            face = style["color"] if point.cell in tradeoff.front else "white"
            axes.errorbar(point.x, point.y, point.se, linestyle="", markersize=5, capsize=0, elinewidth=0.8, markerfacecolor=face, **style)
        _wide(axes, [point.x for point in tradeoff.points])
        axes.set_xlabel(tradeoff.cost.label + (f"\n{tradeoff.machine}" if tradeoff.machine else ""))
    panels[0].set_ylabel(_directed(tradeoffs[0].score))
    return _finished(figure, panels, setting.label)


def curves_figure(setting: Setting, curves: series.Curves) -> Figure:
    """A score along bit-widths or an option, a line for each series, bars ± one standard error."""
    figure, (axes,) = _figure(1)
    looks = _looks(setting)
    for i, line in enumerate(curves.lines):
        style = looks[line.points[0].cell] if curves.kind == "bits" else look(i)
        xs, ys = [point.x for point in line.points], [point.y for point in line.points]
        errors = [point.se or 0.0 for point in line.points]
        axes.errorbar(xs, ys, errors, markersize=4, linewidth=1.1, elinewidth=0.8, **{**style, "label": line.label})
    if curves.reference is not None:
        axes.axhline(curves.reference, color=GREY, linestyle=":", linewidth=0.9, label="full precision")
    if curves.ticks:
        axes.set_xticks(range(len(curves.ticks)), curves.ticks, rotation=35 if len(curves.ticks) > 5 else 0)
    else:
        _wide(axes, [point.x for line in curves.lines for point in line.points])
    axes.set_xlabel(curves.x)
    axes.set_ylabel(_directed(curves.score))
    return _finished(figure, [axes], setting.label)


def heat_figure(heat: series.HeatMap, title: str, logarithmic: bool) -> Figure:
    """Layers down, steps across; grey where there is no value."""
    import numpy as np
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator

    figure, (axes,) = _figure(1, width=2 * PANEL, height=max(1.6, min(9.0, 0.11 * len(heat.rows))) + 0.6)
    rows = [[*row, *(None for _ in range(heat.steps - len(row)))] for row in heat.values]
    values = np.ma.masked_invalid(np.asarray(rows, dtype=float))
    values = np.ma.masked_less_equal(values, 0) if logarithmic else values
    norm = LogNorm() if logarithmic and values.count() else None
    axes.set_facecolor("#d0d0d0")
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=SEQUENTIAL, norm=norm)
    axes.set_yticks(range(len(heat.rows)), heat.rows, fontsize=max(3.0, min(7.0, 400 / len(heat.rows))))
    axes.set_xlabel("step, the noisiest first")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(visible=False)
    figure.colorbar(image, ax=axes, pad=0.01)
    axes.set_title(title)
    return figure


def pattern_figure(pattern: series.Pattern, title: str) -> Figure:
    """Videos down, steps across: activation bits, and grey for steps that were reused."""
    import numpy as np
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    rows = pattern.bits or pattern.computed or ()
    steps = max(len(row) for row in rows)
    states = [[_state(pattern, i, k) for k in range(steps)] for i in range(len(rows))]
    kinds = sorted({state for row in states for state in row}, key=lambda text: (text == "reused", len(text), text))
    shades = ["#c8c8c8" if kind == "reused" else COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)]
    figure, (axes,) = _figure(1, width=2 * PANEL, height=0.5 + 0.18 * len(rows))
    codes = np.asarray([[kinds.index(state) for state in row] for row in states])
    axes.pcolormesh(codes, cmap=ListedColormap(shades), vmin=-0.5, vmax=len(kinds) - 0.5, edgecolors="white", linewidth=0.6)
    axes.invert_yaxis()
    axes.set_yticks([i + 0.5 for i in range(len(rows))], pattern.samples)
    axes.set_xticks([k + 0.5 for k in range(0, steps, max(1, steps // 20))], [str(k) for k in range(0, steps, max(1, steps // 20))])
    axes.set_xlabel("step, the noisiest first")
    axes.grid(visible=False)
    axes.set_title(title)
    patches = [Patch(color=shade, label=kind) for shade, kind in zip(shades, kinds, strict=True)]
    figure.legend(handles=patches, loc="outside lower left", ncols=4)
    return figure


def _state(pattern: series.Pattern, row: int, step: int) -> str:
    if pattern.computed is not None and not pattern.computed[row][step]:
        return "reused"
    return f"{pattern.bits[row][step]} bits" if pattern.bits is not None and step < len(pattern.bits[row]) else "computed"


def _figure(panels: int, width: float = PANEL, height: float = HEIGHT) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * panels, height + ROOM), layout="constrained")
    return figure, list(figure.subplots(1, panels, squeeze=False, sharey=panels > 1)[0])


def _finished(figure: Figure, panels: Sequence[Axes], title: str) -> Figure:
    """With one legend for all panels below them."""
    from matplotlib.lines import Line2D

    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            line: Any = handle[0] if isinstance(handle, tuple) else handle
            style = {"marker": line.get_marker(), "markersize": 5, "linestyle": line.get_linestyle(), "linewidth": 1.1}
            entries.setdefault(label, Line2D([], [], color=line.get_color(), **style))
    width = figure.get_size_inches()[0]
    figure.suptitle(title, fontsize=8.5, x=0.02, ha="left", color=INK)
    figure.legend(list(entries.values()), list(entries), loc="outside lower left", ncols=max(1, int(width / 1.7)), fontsize=7)
    return figure


def _wide(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers where values spread over more than a decade."""
    from vdqbench.inspect.style import plain_log

    if min(values) > 0 and max(values) / min(values) > 10:
        axes.set_xscale("log")
        axes.margins(x=0.08)
        plain_log(axes.xaxis)


def _directed(axis: series.Axis) -> str:
    return f"{axis.label} {'↑' if axis.higher_is_better else '↓'}"
