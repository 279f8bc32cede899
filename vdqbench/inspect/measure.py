"""All frames of numbers of a model: from a calibration's statistics, its repeated calls, and weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vdqbench.calibrate import Calibration
from vdqbench.inspect import activations, changes, temporal
from vdqbench.inspect import weights as shapes
from vdqbench.inspect.inputs import inputs_of
from vdqbench.inspect.trajectories import Trajectories

ATTENTION = ("temporal_attn", "self_attn", "cross_attn")
"""Kinds that QVD's coverage is about, the first that a model has."""


@dataclass(frozen=True)
class Measured:
    """What was measured of a model; columns are described where the frames are made.

    Attributes:
        steps, ratios, channels, step_by_channel, coverage, extremes: of inputs (`vdqbench.inspect.activations`); extremes are the
            channels' ranges of the attention input whose channels cover least.
        spread, histograms, scores, maps: of features of the timestep (`vdqbench.inspect.temporal`), maps of the first ones; without
            rows in a model that has none.
        weights, weight_histograms: a row for each layer; and for each role and bin: role, left (edge, in deviations), density.
        changes: of outputs (`vdqbench.inspect.changes`).
    """

    steps: pd.DataFrame
    ratios: pd.DataFrame
    channels: pd.DataFrame
    step_by_channel: pd.DataFrame
    coverage: pd.DataFrame
    extremes: pd.DataFrame
    spread: pd.DataFrame
    histograms: pd.DataFrame
    scores: pd.DataFrame
    maps: pd.DataFrame
    weights: pd.DataFrame
    weight_histograms: pd.DataFrame
    changes: pd.DataFrame


def measure(
    layers: Mapping[str, str], calibration: Calibration, trajectories: Trajectories, described: Mapping[str, Mapping[str, Any]]
) -> Measured:
    """Everything.

    Args:
        layers: roles of the layers that are looked at, by name.
        described: `vdqbench.inspect.weights.describe` of each of them.
    """
    inputs = inputs_of(layers, calibration)
    steps, channels = activations.by_step(inputs, calibration), activations.by_channel(inputs, calibration)
    ranges = activations.ranges(inputs, calibration)
    coverage = activations.coverage(ranges)
    attention = coverage["role"].str.startswith(ATTENTION)
    candidates = coverage[attention] if attention.any() else coverage
    least = coverage.loc[candidates["p50"].fillna(1.0).idxmin(), "input"]
    features = trajectories.features
    weights, histograms = of_weights(layers, described)
    return Measured(
        steps=steps,
        ratios=activations.step_ratios(steps),
        channels=channels,
        step_by_channel=activations.step_by_channel(channels, calibration),
        coverage=coverage,
        extremes=ranges[ranges["input"] == least].reset_index(drop=True),
        spread=temporal.spread(features),
        histograms=temporal.histograms(features),
        scores=temporal.scores(features),
        maps=temporal.maps(next(iter(features.values()))) if features else pd.DataFrame(),
        weights=weights,
        weight_histograms=histograms,
        changes=changes.by_step(trajectories.changes),
    )


def of_weights(layers: Mapping[str, str], described: Mapping[str, Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Frames `weights` and `weight_histograms`."""
    rows = [{"layer": name, "role": layers[name], **one} for name, one in described.items()]
    counts: dict[str, np.ndarray] = {}
    for name, one in described.items():
        counts[layers[name]] = counts.get(layers[name], np.zeros(shapes.BINS)) + np.array(one["counts"])
    edges = np.linspace(-shapes.EDGE, shapes.EDGE, shapes.BINS + 1)
    width = edges[1] - edges[0]
    bins = [(role, left, n / own.sum() / width) for role, own in counts.items() for left, n in zip(edges[:-1], own, strict=True)]
    return pd.DataFrame(rows).drop(columns="counts"), pd.DataFrame(bins, columns=["role", "left", "density"])
