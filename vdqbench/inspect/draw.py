"""The figures, each from the frames of numbers that are written beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from vdqbench.inspect import changes, phenomena, temporal
from vdqbench.inspect import weights as shapes
from vdqbench.inspect.measure import Measured
from vdqbench.inspect.style import BLUE, DIVERGING, GREY, INK, RED, SEQUENTIAL, depth_colours, figure, panels, plain_log, widened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT: dict[str, Any] = {"x": 0.01, "ha": "left", "fontsize": 9.5}
HEAT: dict[str, Any] = {"aspect": "auto", "interpolation": "nearest"}
SITES = {"pre": ", its output", "post": ", its input"}


def steps(measured: Measured) -> Figure:
    """Largest |x| by step: a panel for each role, a line for each input."""
    roles = list(dict.fromkeys(measured.steps["role"]))
    made, axes = panels(len(roles), sharex=True)
    ratios = measured.ratios.groupby("role", sort=False)["ratio"].median()
    for axis, role in zip(axes, roles, strict=True):
        own = measured.steps[(measured.steps["role"] == role) & (measured.steps["largest"] > 0)]
        lines = own.groupby("input", sort=False)
        for colour, (_, line) in zip(depth_colours(lines.ngroups), lines, strict=True):
            axis.plot(line["step"], line["largest"], color=colour, marker="o", markersize=2)
        axis.set_title(f"{role}   ×{ratios[role]:.3g}")
        if len(own):
            _logarithmic(axis, own["largest"])
        axis.margins(x=0.03)
    made.supxlabel("step (0 is the noisiest)")
    made.supylabel("largest |x|")
    made.suptitle("Largest magnitude of each input by step; × largest over smallest step, median; light: later in the model", **LEFT)
    return made


def channels(measured: Measured) -> Figure:
    """Magnitudes of the channels of each input: a panel for each role, an input beside the other."""
    roles = list(dict.fromkeys(measured.channels["role"]))
    made, axes = panels(len(roles))
    for axis, role in zip(axes, roles, strict=True):
        own = measured.channels[measured.channels["role"] == role].reset_index(drop=True)
        floor = own.loc[:, "p00":"p100"].where(lambda values: values > 0).min().min()
        x, values = own.index, own.loc[:, "p00":"p100"].clip(lower=floor)
        axis.vlines(x, values["p00"], values["p100"], color=GREY, linewidth=1)
        axis.vlines(x, values["p05"], values["p95"], color=BLUE, linewidth=5, alpha=0.45)
        axis.vlines(x, values["p25"], values["p75"], color=BLUE, linewidth=5)
        axis.plot(x, values["p50"], "_", color="white", markersize=7, markeredgewidth=1.4)
        axis.plot(x, values["p100"], "o", color=RED, markersize=3.5)
        axis.set_title(f"{role}   ×{own['ratio'].median():.3g}")
        axis.set_xlim(-0.6, max(len(own) - 0.4, 3.6))
        axis.set_xticks([0, len(own) - 1] if len(own) > 1 else [0])
        axis.grid(visible=False, axis="x")
        _logarithmic(axis, values.to_numpy().ravel())
    made.supxlabel("input, in the order of the model")
    made.supylabel("largest |x| of a channel")
    made.suptitle("Magnitudes of channels: middle half, 5-95 %, all, and the largest (red); × largest over median channel, median", **LEFT)
    return made


def step_by_channel(measured: Measured) -> Figure:
    """Largest |x| by step and channel of the widest spread input of each kind."""
    from matplotlib.colors import LogNorm

    frame = measured.step_by_channel
    names = list(dict.fromkeys(frame["input"]))
    made, axes = panels(len(names), height=2.1, columns=2)
    for axis, name in zip(axes, names, strict=True):
        own = frame[frame["input"] == name]
        table = own.iloc[:, 4:].to_numpy().T
        high = table.max()
        low = max(table[table > 0].min(), high * 1e-3)
        shown = np.where(table > 0, table.clip(low), np.nan)
        picture = axis.imshow(shown, norm=LogNorm(low, high), cmap=_with_grey(SEQUENTIAL), **HEAT)
        channels = int(own["channels"].iloc[0])
        some = f", {len(own)} largest of {channels} channels" if len(own) < channels else ""
        axis.set_title(f"{own['role'].iloc[0]}: {short(name)}{some}")
        axis.grid(visible=False)
        plain_log(made.colorbar(picture, ax=axis, pad=0.01).ax.yaxis)
    made.supxlabel("channel")
    made.supylabel("step (0 is the noisiest)")
    made.suptitle("Largest |x| by channel and step, of the input of each kind whose channels differ most; grey: always 0", **LEFT)
    return made


def coverage(measured: Measured) -> Figure:
    """How much of the common range channels cover: one input channel by channel, and all inputs by role."""
    made = figure(3.6)
    left, right = made.subplots(1, 2, width_ratios=(1, 1.35))
    own = measured.extremes
    low, high = min(own["low"].min(), 0), max(own["high"].max(), 0)
    left.axhspan(low, high, color=GREY, alpha=0.18, linewidth=0)
    left.vlines(own["channel"], own["low"], own["high"], color=BLUE, linewidth=max(0.4, min(2.0, 220 / len(own))))
    left.set_title(f"{own['role'].iloc[0]}: {short(own['input'].iloc[0], 26)}")
    left.set_xlabel("channel")
    left.set_ylabel("range of values (grey: of the grid they share)")
    left.margins(x=0.01)
    known = measured.coverage.dropna(subset="p50")
    roles = list(dict.fromkeys(known["role"]))
    by = known.groupby("role", sort=False)[["p05", "p25", "p50", "p75", "p95"]].median()
    rows = range(1, len(roles) + 1)
    right.hlines(rows, by["p05"], by["p95"], color=GREY, linewidth=1)
    right.hlines(rows, by["p25"], by["p75"], color=BLUE, linewidth=7, alpha=0.45)
    right.plot(by["p50"], rows, "|", color=INK, markersize=8, markeredgewidth=1.6)
    right.axvline(phenomena.COVERAGE.threshold, color=RED, linestyle="--", linewidth=1)
    right.set_yticks(rows, roles)
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.set_xlabel("channel's range / range of the grid")
    right.set_title("channels by role: 5, 25, 50, 75, 95 % (median over inputs)")
    made.suptitle("Coverage of the levels of one min-max grid for all channels and steps; dashed: one bit lost", **LEFT)
    return made


def temporal_histogram(measured: Measured) -> Figure:
    """Values of the features of the timestep: all, the middle 90 % with the levels of a fine uniform grid, and octaves."""
    spread = measured.spread.drop_duplicates("site")
    made = figure(2.4 * len(spread) + 0.4)
    grid = made.subplots(len(spread), 3, squeeze=False)
    for (whole, inner, octaves), row in zip(grid, spread.itertuples(), strict=True):
        own = measured.histograms[(measured.histograms["layer"] == row.layer) & (measured.histograms["site"] == row.site)]
        _bars(whole, own[own["part"] == "all"], BLUE)
        whole.set_yscale("log")
        plain_log(whole.yaxis)
        whole.set_title(f"{short(row.layer, 26)}{SITES[row.site]}")
        whole.set_xlabel("T, all values")
        part = own[own["part"] == "middle"]
        step = (max(row.high, 0) - min(row.low, 0)) / (2**temporal.FINE - 1)
        low, high = part["left"].min(), part["right"].max()
        levels = np.arange(np.ceil(low / step - 0.5), np.floor(high / step + 0.5) + 1)
        if len(levels) <= 60:
            for level in levels[levels % 2 == 0]:
                inner.axvspan((level - 0.5) * step, (level + 0.5) * step, color=GREY, alpha=0.18, linewidth=0)
        _bars(inner, part, BLUE)
        inner.set_xlim(low, high)
        inner.set_title(f"{row.middle10} of 1024 levels" + ", in grey and white" * (len(levels) <= 60))
        inner.set_xlabel("T, middle 90 %")
        for sign, colour, label in (("positive", BLUE, "T > 0"), ("negative", RED, "T < 0")):
            _bars(octaves, own[own["part"] == f"log2 of {sign}"], colour, alpha=0.55, label=label)
        octaves.set_title(f"largest / median |T| = {row.imbalance:.3g}")
        octaves.set_xlabel("log₂ |T|")
        octaves.legend()
    made.supylabel("number of values")
    made.suptitle("Features of the timestep at all steps: distribution, on a uniform grid of 10 bits, and by octaves", **LEFT)
    return made


def temporal_heatmap(measured: Measured) -> Figure:
    """Features by step and channel, in floating point and quantized."""
    from matplotlib.colors import SymLogNorm

    values = {str(name): own.iloc[:, 2:].to_numpy() for name, own in measured.maps.groupby("quantizer", sort=False)}
    exact, channels = values[temporal.FLOAT], int(measured.spread["channels"].iloc[0])
    high, median = float(np.abs(exact).max()), float(np.median(np.abs(exact)))
    made = figure(1.45 * len(values) + 0.6)
    axes = made.subplots(len(values), 1, sharex=True, squeeze=False)[:, 0]
    norm = SymLogNorm(linthresh=max(median, high * 1e-4), vmin=-high, vmax=high)
    for axis, (name, table) in zip(axes, values.items(), strict=True):
        score = measured.scores[(measured.scores["quantizer"] == name) & (measured.scores["bits"].isin([8]) | (name == temporal.FLOAT))]
        axis.set_title(f"{name}{', 8 bits' * (name != temporal.FLOAT)}: TDScore {score['td_score'].iloc[0]:.3f}")  # of the first features
        picture = axis.imshow(table, norm=norm, cmap=DIVERGING, **HEAT)
        axis.grid(visible=False)
    axes[-1].set_xlabel("channel" if exact.shape[1] == channels else f"{exact.shape[1]} of {channels} channels")
    made.colorbar(picture, ax=axes, pad=0.01, label="T (linear up to the median, then logarithmic)")
    made.supylabel("step (0 is the noisiest)")
    made.suptitle("Features of the timestep, one row for each step", **LEFT)
    return made


def weights(measured: Measured) -> Figure:
    """Histograms of weights in deviations, with the Gaussian fit, by role."""
    roles = list(dict.fromkeys(measured.weight_histograms["role"]))
    made, axes = panels(len(roles), height=1.6, columns=5, sharex=True, sharey=True)
    width = 2 * shapes.EDGE / shapes.BINS
    x = np.linspace(-shapes.EDGE, shapes.EDGE, 200)
    gaussian = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    known = measured.weights.groupby("role", sort=False)["ks"].median()
    for axis, role in zip(axes, roles, strict=True):
        own = measured.weight_histograms[measured.weight_histograms["role"] == role]
        axis.bar(own["left"], own["density"], width, align="edge", color=BLUE, alpha=0.55, linewidth=0)
        axis.plot(x, gaussian, color=RED, linewidth=1)
        axis.set_title(f"{role}   {known[role]:.3f}")
        axis.set_yscale("log")
    axes[0].set_ylim(1e-6, 1)
    axes[0].set_xlim(-shapes.EDGE, shapes.EDGE)
    made.supxlabel("weight, in deviations of its layer")
    made.supylabel("density")
    made.suptitle("Weights by role, and the Gaussian of their mean and deviation (line); number: Kolmogorov-Smirnov distance", **LEFT)
    return made


def outputs(measured: Measured) -> Figure:
    """Relative change of the output by step, and the steps that delta-GBS gives few bits."""
    from matplotlib.colors import ListedColormap
    from matplotlib.ticker import MaxNLocator

    frame = measured.changes
    made = figure(3.9)
    upper, lower = made.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    by = frame.dropna(subset="change").groupby("step")["change"]
    mean, low, high = by.mean(), by.min(), by.max()
    upper.fill_between(mean.index, low, high, color=BLUE, alpha=0.2, linewidth=0, label="all prompts")
    upper.plot(mean.index, mean, color=BLUE, marker="o", markersize=3, label="mean")
    upper.axhline(changes.DELTA, color=RED, linestyle="--", linewidth=1, label=f"δ = {changes.DELTA:g}")
    upper.set_yscale("log")
    upper.set_ylim(*widened([*low, *high, changes.DELTA]))
    plain_log(upper.yaxis)
    upper.set_ylabel("‖Fₜ − Fₜ₋₁‖₁ / ‖Fₜ₋₁‖₁")
    upper.legend(loc="best")
    table = frame.pivot(index="prompt", columns="step", values="low").to_numpy().astype(float)
    lower.imshow(table, cmap=ListedColormap([BLUE, "#E8EEF3"]), vmin=0, vmax=1, **HEAT)
    lower.set_yticks([])
    lower.set_ylabel(f"{len(table)} prompts")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True))
    lower.set_xlabel("step (0 is the noisiest)")
    lower.set_title(f"δ-GBS, δ = {changes.DELTA:g}: 8 bits (dark), 4 bits (light)")
    for axis in (upper, lower):
        axis.grid(visible=False, axis="x")
    lower.grid(visible=False)
    made.suptitle("How much the denoiser's output changes from step to step", **LEFT)
    return made


def short(name: str, most: int = 40) -> str:
    """A layer's name with its middle left out if it is long.

    >>> short("up_blocks.0.motion_modules.0.attn1.to_q", 20)
    'up_blocks.…ttn1.to_q'
    """
    return name if len(name) <= most else f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"


def _bars(axis: Axes, part: pd.DataFrame, colour: str, **options: Any) -> None:
    axis.bar(part["left"], part["count"], part["right"] - part["left"], align="edge", color=colour, linewidth=0, **options)


def _with_grey(name: str) -> Any:
    """A scale of colours with grey for what is not there."""
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad="#DDDDDD")


def _logarithmic(axis: Axes, values: object) -> None:
    positive = [value for value in np.asarray(values, dtype=float) if value > 0]
    axis.set_yscale("log")
    axis.set_ylim(*widened(positive))
    plain_log(axis.yaxis)


FIGURES: dict[str, Callable[[Measured], Figure]] = {
    "activation_steps": steps,
    "activation_channels": channels,
    "activation_heatmap": step_by_channel,
    "temporal_histogram": temporal_histogram,
    "temporal_heatmap": temporal_heatmap,
    "level_coverage": coverage,
    "weights": weights,
    "output_changes": outputs,
}
"""By file name, in the order of the page."""
TEMPORAL = ("temporal_histogram", "temporal_heatmap")
"""Those that a model without features of the timestep lacks."""
