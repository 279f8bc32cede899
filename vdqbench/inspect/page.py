"""What was found, as a Markdown page with figures, and one page over all models."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from vdqbench.inspect import temporal
from vdqbench.inspect.findings import NO_FEATURES
from vdqbench.inspect.measure import Measured
from vdqbench.inspect.phenomena import ALL, SOURCES, Finding

COLUMNS = ("phenomenon", "paper", "layers", "value", "threshold", "verdict", "note")
ALL_LAYERS = "all"
CAPTIONS = {
    "activation_steps": "Activations by step",
    "activation_channels": "Activations by channel",
    "activation_heatmap": "Activations by channel and step",
    "temporal_histogram": "Features of the timestep",
    "temporal_heatmap": "Features of the timestep, quantized",
    "level_coverage": "Coverage of quantization levels",
    "weights": "Weights",
    "output_changes": "Outputs from step to step",
}
"""Headings, in the order of the figures."""


def frames(measured: Measured) -> dict[str, pd.DataFrame]:
    """The numbers behind each figure, by file name without suffix; empty ones are left out."""
    made = {
        "activation_steps": measured.steps,
        "activation_channels": measured.channels,
        "activation_heatmap": measured.step_by_channel,
        "temporal_histogram": measured.histograms,
        "temporal_heatmap": measured.maps,
        "temporal_features": measured.spread,
        "temporal_quantizers": measured.scores,
        "level_coverage": measured.coverage,
        "level_coverage_channels": measured.extremes,
        "weights": measured.weights,
        "weights_histogram": measured.weight_histograms,
        "output_changes": measured.changes,
    }
    return {name: frame for name, frame in made.items() if len(frame)}


def as_csv(findings: Sequence[Finding], layers: str | None) -> str:
    """The verdicts, and of which layers they are."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in findings:
        value = "" if one.value is None else f"{one.value:.6g}"
        writer.writerow(
            [one.phenomenon.name, one.phenomenon.paper, layers or ALL_LAYERS, value, one.phenomenon.bound, one.verdict, one.note]
        )
    return text.getvalue()


def as_markdown(model: str, about: Sequence[str], findings: Sequence[Finding], measured: Measured, pictures: Sequence[str]) -> str:
    """The page.

    Args:
        about: what was looked at, and how it was made.
        pictures: names of the figures that were drawn.
    """
    return (
        "\n".join([f"# What the papers argue from, on {model}\n", *about, "", *_verdicts(findings), *_sections(measured, pictures)]) + "\n"
    )


def _verdicts(findings: Sequence[Finding]) -> Iterator[str]:
    shown = [one.phenomenon.title for one in findings if one.verdict == "shown"]
    missing = [one.phenomenon.title for one in findings if one.verdict == "not shown"]
    yield f"**Shown** ({len(shown)} of {len(findings)}): {'; '.join(shown) or 'none'}.\n"
    yield f"**Not shown** ({len(missing)}): {'; '.join(missing) or 'none'}.\n"
    if absent := [one.phenomenon.title for one in findings if one.verdict == "absent"]:
        yield f"**Nothing to measure** ({len(absent)}): {'; '.join(absent)}.\n"
    yield "Verdicts follow from the thresholds alone; below the table is why they are what they are.\n"
    yield "| phenomenon | paper | value | shown if | verdict | details |"
    yield "| :-- | :-- | --: | --: | :-- | :-- |"
    for one in findings:
        value = "–" if one.value is None else f"{one.value:.3g}"
        verdict = f"**{one.verdict}**" if one.verdict == "shown" else one.verdict
        yield f"| {one.phenomenon.title} | {one.phenomenon.paper} | {value} | {one.phenomenon.bound} | {verdict} | {_cell(one.note)} |"
    yield "\n## What is said, and what is measured\n"
    yield "; ".join(f"{paper}: {where}" for paper, where in SOURCES.items()) + ".\n"
    for one in findings:
        what = one.phenomenon
        bound = f"shown if {what.bound}: {what.reason}"
        yield f"- **{what.title}** ({what.paper}, {what.place}). {what.says} Measured: {what.measure}; {bound}."


def _sections(measured: Measured, pictures: Sequence[str]) -> Iterator[str]:
    texts = {
        "activation_steps": _inputs(measured),
        "temporal_heatmap": _quantizers(measured),
        "level_coverage": _levels(measured),
        "weights": _weights(measured),
    }
    for name, heading in CAPTIONS.items():
        if name not in pictures:
            continue
        yield f"\n## {heading}\n\n![{heading}]({name}.png)\n"
        yield from texts.get(name, [])
        yield f"Numbers: {', '.join(f'[{file}.csv]({file}.csv)' for file in frames(measured) if _behind(file) == name)}"
    if measured.spread.empty:
        yield f"\n## Features of the timestep\n\n{NO_FEATURES.capitalize()}."


def _behind(file: str) -> str:
    """The figure that a frame is behind."""
    own = {"temporal_features": "temporal_histogram", "temporal_quantizers": "temporal_heatmap"}
    return own.get(file) or max((name for name in CAPTIONS if file.startswith(name)), key=len)


def _inputs(measured: Measured) -> Iterator[str]:
    ratios, channels = (frame.groupby("role", sort=False) for frame in (measured.ratios, measured.channels))
    table = pd.DataFrame(
        {
            "inputs": ratios.size(),
            "largest / smallest step": ratios["ratio"].median(),
            "largest / median channel": channels["ratio"].median(),
        }
    )
    yield "Medians over the inputs of each role; layers that read the same tensor count once.\n"
    yield from _table(table, "role")


def _quantizers(measured: Measured) -> Iterator[str]:
    yield "TDScore (lower: steps are easier to tell apart) and squared error; grids as the recipe `qvd` finds them.\n"
    own = measured.scores[measured.scores["layer"] == measured.scores["layer"].iloc[0]]
    table = own.pivot_table(index="quantizer", columns="bits", values=["td_score", "error"], sort=False)
    yield f"| {own['layer'].iloc[0]} | " + " | ".join(f"TDScore, {bits} bits | error, {bits} bits" for bits in temporal.BITS) + " |"
    yield "| :-- |" + " --: | --: |" * len(temporal.BITS)
    for name in temporal.GRIDS:
        numbers = [f"{table.loc[name, ('td_score', bits)]:.4f} | {table.loc[name, ('error', bits)]:.3g}" for bits in temporal.BITS]
        yield f"| {name} | " + " | ".join(numbers) + " |"
    yield f"| {temporal.FLOAT} | {own['td_score'].iloc[0]:.4f} | 0 |" + " | |" * (len(temporal.BITS) - 1) + "\n"


def _levels(measured: Measured) -> Iterator[str]:
    by = measured.coverage.groupby("role", sort=False)
    table = pd.DataFrame({"coverage": by["p50"].median()})
    for bits in (8, 4):
        table[f"levels of {2**bits}"] = by[f"levels{bits}"].median()
        table[f"on one level, {bits} bits (%)"] = 100 * by[f"single{bits}"].mean()
    yield "Of the median channel, on one asymmetric min-max grid per tensor for all steps; and channels that a single level is left of.\n"
    yield from _table(table, "role")


def _weights(measured: Measured) -> Iterator[str]:
    by = measured.weights.assign(range=measured.weights["peak"] / measured.weights["expected"]).groupby("role", sort=False)
    table = pd.DataFrame(
        {
            "layers": by.size(),
            "KS distance": by["ks"].median(),
            "excess kurtosis": by["kurtosis"].median(),
            "beyond 3 deviations (%)": 100 * by["beyond3"].median(),
            "largest (deviations)": by["peak"].median(),
            "over a Gaussian's": by["range"].median(),
            "PBQ saves (%)": 100 * by["gain"].median(),
        }
    )
    yield "Medians over the layers of each role.\n"
    yield from _table(table, "role")


def _table(frame: pd.DataFrame, index: str) -> Iterator[str]:
    yield f"| {index} | " + " | ".join(frame.columns) + " |"
    yield "| :-- |" + " --: |" * len(frame.columns)
    for name, row in frame.iterrows():
        yield f"| {name} | " + " | ".join("–" if pd.isna(value) else f"{value:.3g}" for value in row) + " |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def overview(models: Mapping[str, Sequence[Mapping[str, str]]]) -> str:
    """Which model shows what: a column for each, from the rows of its phenomena.csv.

    Those of a part of a model's layers are left out.
    """
    models = {name: rows for name, rows in models.items() if all(row["layers"] == ALL_LAYERS for row in rows)}
    lines = ["# Which models show what the papers argue from\n"]
    lines += ["Verdicts by thresholds that each model's page declares, with the value that was measured.\n"]
    lines += [f"| phenomenon | paper | shown if | {' | '.join(f'[{name}]({name}/page.md)' for name in models)} |"]
    lines += ["| :-- | :-- | --: |" + " :-- |" * len(models)]
    known = [{row["phenomenon"]: row for row in rows} for rows in models.values()]
    for one in ALL:
        cells = []
        for rows in known:
            row = rows.get(one.name)
            cells.append("–" if row is None else row["verdict"] if not row["value"] else f"{row['verdict']} ({float(row['value']):.3g})")
        lines.append(f"| {one.title} | {one.paper} | {one.bound} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
