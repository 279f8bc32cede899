"""How features of the timestep are distributed, and what quantizers make of them: QVD's Figures 3, 4 and 5."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vdqbench.quant.activations.hidi_tq import HidiTq
from vdqbench.quant.format import Format
from vdqbench.quant.observer import searched_range
from vdqbench.quant.quantizer import QParams, choose_qparams, fake_quantize, quantize
from vdqbench.quant.temporal import Features, LogGrid, search, td_scores

BITS = (4, 6, 8, 10)
FINE = 10
"""Bits of the uniform grid of QVD's Figure 4."""
MIDDLE = 0.9
"""Share of the values that its part (b) shows."""
BINS = 60
MOST_CHANNELS = 256
"""Of the heat map."""
FLOAT = "floating point"
GRIDS = UNIFORM, LEAST, LOG2, HIDI = "uniform, min-max", "uniform, least error", "log2", "HiDi-TQ"
OPTIONS = HidiTq()
"""TDScore's neighbours and eps, and the search, as the recipe `qvd` has them."""


class Crowding(NamedTuple):
    """How values lie on a uniform min-max grid.

    Attributes:
        fullest: share of all values that are on the level with the most.
        middle: number of levels that the middle 90 % of the values lie on.
    """

    fullest: float
    middle: int


def imbalance(values: Tensor) -> float:
    """Largest over median magnitude."""
    median = middle_magnitude(values)
    return float(values.abs().amax()) / median if median > 0 else math.inf


def middle_magnitude(values: Tensor) -> float:
    """Median of |T|."""
    ordered = values.abs().flatten().sort().values
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def uniform(values: Tensor, bits: int) -> QParams:
    """The asymmetric min-max grid of all values."""
    return choose_qparams(values.amin(), values.amax(), Format(bits))


def crowding(values: Tensor, bits: int) -> Crowding:
    """On the uniform grid of so many bits."""
    codes = quantize(values, uniform(values, bits), Format(bits)).flatten()
    counts = torch.bincount(codes.long(), minlength=2**bits)
    low, high = middle(codes)
    return Crowding(float(counts.amax()) / len(codes), int((counts[int(low) : int(high) + 1] > 0).sum()))


def middle(values: Tensor) -> tuple[float, float]:
    """Bounds of the middle 90 % of the values, by nearest rank."""
    ordered = values.flatten().sort().values
    out = round((1 - MIDDLE) / 2 * (len(ordered) - 1))
    return float(ordered[out]), float(ordered[len(ordered) - 1 - out])


def quantized(features: Features, bits: int) -> dict[str, Tensor]:
    """The features on the grids that QVD's Figure 5 compares, each found on all of them."""
    rows, fmt, levels = features.rows, Format(bits), OPTIONS.levels(bits)
    found = {
        UNIFORM: fake_quantize(rows, uniform(rows, bits), fmt),
        LEAST: fake_quantize(rows, choose_qparams(*searched_range(rows, fmt), fmt), fmt),
    }
    for name, offset in ((LOG2, False), (HIDI, True)):
        best = search(features, levels, offset, False, OPTIONS.objective, OPTIONS.candidates)
        found[name] = LogGrid(best.scale, best.beta, levels)(rows)
    return found


def td_score(values: Tensor, features: Features) -> float:
    """Mean TDScore over the steps, lower is easier to tell apart; NaN if there is one step only."""
    return float(td_scores(values, features, OPTIONS.neighbours, OPTIONS.eps).mean())


def scores(found: Mapping[tuple[str, str], Features]) -> pd.DataFrame:
    """TDScore and squared error (summed over channels, mean over rows) of every grid.

    Returns:
        Columns layer, site, quantizer, bits (missing for floating point), td_score, error.
    """
    rows: list[tuple[str, str, str, int | None, float, float]] = []
    for (layer, site), features in found.items():
        rows.append((layer, site, FLOAT, None, td_score(features.rows, features), 0.0))
        for bits in BITS:
            for name, values in quantized(features, bits).items():
                error = float((values - features.rows).square().sum(1).mean())
                rows.append((layer, site, name, bits, td_score(values, features), error))
    frame = pd.DataFrame(rows, columns=["layer", "site", "quantizer", "bits", "td_score", "error"])
    return frame.assign(bits=frame["bits"].astype("Int64"))


def spread(found: Mapping[tuple[str, str], Features]) -> pd.DataFrame:
    """How values are distributed: a row for each layer and site.

    Returns:
        Columns layer, site, steps, rows, channels, low, high; median, of magnitudes; imbalance; middle_low and middle_high; and for 8
        and 10 bits fullest8, middle8, ... (`Crowding`).
    """
    rows = []
    for (layer, site), features in found.items():
        values = features.rows
        one = {"layer": layer, "site": site, "steps": len(set(features.step)), "rows": len(values), "channels": values.shape[1]}
        one |= {"low": float(values.amin()), "high": float(values.amax()), "median": middle_magnitude(values)}
        one |= dict(zip(("middle_low", "middle_high"), middle(values), strict=True), imbalance=imbalance(values))
        for bits in (8, FINE):
            crowd = crowding(values, bits)
            one |= {f"fullest{bits}": crowd.fullest, f"middle{bits}": crowd.middle}
        rows.append(one)
    return pd.DataFrame(rows)


def histograms(found: Mapping[tuple[str, str], Features]) -> pd.DataFrame:
    """Counts of all values, of the middle 90 %, and of log2 |T| by octave and sign: columns layer, site, part, left, right, count."""
    rows = []
    for (layer, site), features in found.items():
        values = features.rows.flatten().double().numpy()
        low, high = middle(features.rows)
        inner = values[(values >= low) & (values <= high)]
        parts = {"all": np.histogram(values, BINS), "middle": np.histogram(inner, BINS)}
        for sign, own in (("log2 of positive", values[values > 0]), ("log2 of negative", -values[values < 0])):
            if len(own):
                octaves = np.log2(own)
                parts[sign] = np.histogram(octaves, np.arange(np.floor(octaves.min()), np.floor(octaves.max()) + 2))
        for part, (counts, edges) in parts.items():
            rows += [(layer, site, part, a, b, n) for a, b, n in zip(edges[:-1], edges[1:], counts.tolist(), strict=True)]
    return pd.DataFrame(rows, columns=["layer", "site", "part", "left", "right", "count"])


def maps(features: Features, bits: int = 8) -> pd.DataFrame:
    """One row of features for each step, in floating point and as the uniform grid and HiDi-TQ give it back.

    Returns:
        Columns quantizer, step, and one for each channel; of more than `MOST_CHANNELS`, evenly spaced ones.
    """
    first = [row for row, variant in enumerate(features.variant) if variant == 0]
    channels = features.rows.shape[1]
    kept = np.linspace(0, channels - 1, min(MOST_CHANNELS, channels)).round().astype(int).tolist()
    values = {FLOAT: features.rows, **quantized(features, bits)}
    frames = []
    for name in (FLOAT, UNIFORM, HIDI):
        about = pd.DataFrame({"quantizer": name, "step": [features.step[row] for row in first]})
        frames.append(pd.concat([about, pd.DataFrame(values[name][first][:, kept].numpy(), columns=kept)], axis=1))
    return pd.concat(frames, ignore_index=True)
