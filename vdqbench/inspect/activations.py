"""Ranges of the inputs of layers, from a calibration's statistics alone: by step, by channel, and on the grid that they share.

ASQ/TSQ's Figure 3 (largest magnitude by step and by channel) and QVD's Figure 6 (level coverage by channel).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from vdqbench.calibrate import Calibration, Statistics
from vdqbench.inspect.inputs import Input
from vdqbench.quant.format import Format
from vdqbench.quant.quantizer import centred_codes, choose_qparams

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Over channels, of what frames say about them."""
NAMES = [f"p{100 * q:02.0f}" for q in QUANTILES]
BITS = (8, 4)
FIRST = ("self_attn", "temporal_attn", "cross_attn", "ffn")
"""Kinds of layers that the papers quantize: those are shown first."""
MOST_CHANNELS, MOST_PANELS = 256, 6
"""Of the picture of channels by step."""


def magnitude(statistics: Statistics) -> Tensor:
    """Largest |x| by prompt, step and channel, over the guidance branches: [P, K, C]."""
    return torch.maximum(statistics["max"], -statistics["min"]).amax(2)


def by_step(inputs: Sequence[Input], calibration: Calibration) -> pd.DataFrame:
    """Largest |x| of each input at each step, over prompts, branches and channels: columns input, role, step, largest."""
    rows = [
        (one.layer, one.role, step, value)
        for one in inputs
        for step, value in enumerate(magnitude(calibration.statistics(one.layer)).amax((0, 2)).tolist())
    ]
    return pd.DataFrame(rows, columns=["input", "role", "step", "largest"])


def step_ratios(frame: pd.DataFrame) -> pd.DataFrame:
    """From `by_step`: columns input, role, smallest and largest step's value and their ratio, NaN where a step has only zeros."""
    grouped = frame.groupby(["input", "role"], sort=False)["largest"].agg(smallest="min", largest="max").reset_index()
    return grouped.assign(ratio=(grouped["largest"] / grouped["smallest"]).where(grouped["smallest"] > 0))


def by_channel(inputs: Sequence[Input], calibration: Calibration) -> pd.DataFrame:
    """Largest |x| of the channels of each input, over prompts, steps and branches.

    Returns:
        Columns input, role, channels, quantiles over the channels (`NAMES`), and ratio: that of the largest channel to the
        median one, NaN where the median is 0.
    """
    rows = []
    for one in inputs:
        values = magnitude(calibration.statistics(one.layer)).amax((0, 1))
        spread = quantiles(values)
        median = spread[QUANTILES.index(0.5)]
        rows.append((one.layer, one.role, len(values), *spread, spread[-1] / median if median > 0 else math.nan))
    return pd.DataFrame(rows, columns=["input", "role", "channels", *NAMES, "ratio"])


def quantiles(values: Tensor) -> list[float]:
    """`QUANTILES` of [n], by linear interpolation."""
    return torch.quantile(values.double(), torch.tensor(QUANTILES, dtype=torch.float64, device=values.device)).tolist()


def step_by_channel(channels: pd.DataFrame, calibration: Calibration) -> pd.DataFrame:
    """Largest |x| by channel and step of the input of each kind of layer whose channels differ most: `MOST_PANELS` kinds, `FIRST` first.

    Args:
        channels: from `by_channel`.

    Returns:
        Columns input, role, channels, channel, and one for each step; of more than `MOST_CHANNELS` channels the largest, in their order.
    """
    kinds = channels.assign(kind=channels["role"].str.partition(".")[0]).dropna(subset="ratio")
    widest = kinds.loc[kinds.groupby("kind", sort=False)["ratio"].idxmax()]
    picked = widest.assign(later=~widest["kind"].isin(FIRST)).sort_values(["later", "ratio"], ascending=[True, False]).head(MOST_PANELS)
    frames = []
    for row in picked.sort_index().itertuples():
        values = magnitude(calibration.statistics(str(row.input))).amax(0)
        kept = values.amax(0).topk(min(MOST_CHANNELS, values.shape[1])).indices.sort().values
        about = pd.DataFrame({"input": row.input, "role": row.role, "channels": values.shape[1], "channel": kept.tolist()})
        frames.append(pd.concat([about, pd.DataFrame(values[:, kept].T.numpy())], axis=1))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def ranges(inputs: Sequence[Input], calibration: Calibration) -> pd.DataFrame:
    """Smallest and largest value of each channel, over prompts, steps and branches: columns input, role, channel, low, high."""
    frames = []
    for one in inputs:
        statistics = calibration.statistics(one.layer)
        low, high = statistics["min"].amin((0, 1, 2)), statistics["max"].amax((0, 1, 2))
        frames.append(pd.DataFrame({"input": one.layer, "role": one.role, "channel": range(len(low)), "low": low, "high": high}))
    return pd.concat(frames, ignore_index=True)


def channel_coverage(low: Tensor, high: Tensor) -> Tensor:
    """Range of each channel over the range of the common min-max grid (which has 0 on it): [C] in 0..1 (QVD, Fig. 6)."""
    whole = high.amax().clamp(min=0) - low.amin().clamp(max=0)
    return (high - low) / whole if whole > 0 else torch.zeros_like(low)


def channel_levels(low: Tensor, high: Tensor, bits: int) -> Tensor:
    """How many levels of the common asymmetric grid lie between each channel's smallest and largest value as rounded: [C], 1 .. 2^bits."""
    fmt = Format(bits)
    params = choose_qparams(low.amin(), high.amax(), fmt)
    return centred_codes(high, params, fmt) - centred_codes(low, params, fmt) + 1


def coverage(channels: pd.DataFrame) -> pd.DataFrame:
    """How much of a common min-max grid (per tensor, for all steps) the channels of each input reach.

    Args:
        channels: from `ranges`.

    Returns:
        Columns input, role, channels; quantiles over the channels of their coverage (`NAMES`); and for each of `BITS` the median
        number of levels a channel reaches (levels8), and the share of channels with a single one (single8). All NaN for an input
        that never changes.
    """
    names = [name for bits in BITS for name in (f"levels{bits}", f"single{bits}")]
    rows = []
    for (name, role), group in channels.groupby(["input", "role"], sort=False):
        low, high = torch.tensor(group["low"].to_numpy()), torch.tensor(group["high"].to_numpy())
        if bool((low == high).all()):
            rows.append((name, role, len(low), *[math.nan] * (len(NAMES) + len(names))))
            continue
        levels = [channel_levels(low, high, bits) for bits in BITS]
        counted = [number for one in levels for number in (float(one.double().quantile(0.5)), float((one == 1).double().mean()))]
        rows.append((name, role, len(low), *quantiles(channel_coverage(low, high)), *counted))
    return pd.DataFrame(rows, columns=["input", "role", "channels", *NAMES, *names])
