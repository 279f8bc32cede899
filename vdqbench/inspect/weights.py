"""How much a layer's weights look like a Gaussian, and what a tighter range than min-max saves: DVD-Quant's Figure 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdqbench.quant.format import Format
from vdqbench.quant.quantizer import fake_quantize
from vdqbench.quant.ranges import minmax, pbq

MOST = 2**20
"""Weights of a layer that its distribution is taken from; of more, evenly spaced ones."""
MOST_ROWS = 128
"""Output channels that are quantized to compare ranges; of more, evenly spaced ones."""
EDGE, BINS = 8.0, 64
"""The histogram covers this many deviations to both sides."""
BITS = 4


def standardized(weight: Tensor) -> tuple[Tensor, float, float]:
    """(w - mean) / deviation of all weights, float64 [n], with mean and deviation; a constant weight gives zeros."""
    values = weight.detach().double().flatten()
    mean, std = float(values.mean()), float(values.std(correction=0))
    return (values - mean) / (std or 1.0), mean, std


def ks_distance(z: Tensor) -> float:
    """Kolmogorov-Smirnov distance of numbers [n] to the standard normal distribution: the largest gap between distribution functions.

    For reference: of a Laplace distribution of the same mean and deviation it is 0.062, of a uniform one 0.057.
    """
    z = z.sort().values
    n = len(z)
    cdf, rank = torch.special.ndtr(z), torch.arange(n + 1, dtype=z.dtype, device=z.device) / n
    return float(torch.maximum(rank[1:] - cdf, cdf - rank[:-1]).amax())


def gaussian_peak(n: int) -> float:
    """Median of the largest magnitude among n numbers of the standard normal distribution, in deviations."""
    return -float(torch.special.ndtri(torch.tensor(-math.expm1(math.log(0.5) / n) / 2, dtype=torch.float64)))


def clipping_gain(weight: Tensor, bits: int = BITS) -> float:
    """By how much DVD-Quant's search for the range (PBQ) lowers the deviation of the weight error below min-max: 0 .. 1.

    Both per output channel, on an asymmetric grid; 0 for a weight that has no error to begin with.
    """
    rows, fmt = spaced(weight.detach().float().flatten(1), MOST_ROWS), Format(bits)
    errors = [float((fake_quantize(rows, grid(rows, fmt), fmt) - rows).double().square().sum()) for grid in (minmax, pbq)]
    return 1 - math.sqrt(errors[1] / errors[0]) if errors[0] > 0 else 0.0


def spaced(values: Tensor, most: int) -> Tensor:
    """At most so many, evenly spaced, along dimension 0."""
    return values[:: math.ceil(len(values) / most)]


def describe(weight: Tensor) -> dict[str, float | list[int]]:
    """A weight [Cout, Cin, ...] in numbers.

    Returns:
        elements, row (elements of an output channel), mean, std; kurtosis (excess, 0 for a Gaussian); ks, `ks_distance` to the Gaussian
        of this mean and deviation; beyond3, the share of weights more than three deviations off (0.0027 for a Gaussian); peak, the
        largest one in deviations; expected, `gaussian_peak`; gain, `clipping_gain`; counts, the histogram of `BINS` bins over
        -EDGE .. EDGE deviations, in which weights further off are in the outer bins.
    """
    z, mean, std = standardized(weight)
    sample = spaced(z, MOST)
    counts = torch.histc(z.clamp(-EDGE, EDGE).float(), BINS, -EDGE, EDGE)
    return {
        "elements": z.numel(),
        "row": weight[0].numel(),
        "mean": mean,
        "std": std,
        "kurtosis": float(z.pow(4).mean()) - 3,
        "ks": ks_distance(sample),
        "beyond3": float((z.abs() > 3).double().mean()),
        "peak": float(z.abs().amax()),
        "expected": gaussian_peak(z.numel()),
        "gain": clipping_gain(weight),
        "counts": [int(count) for count in counts.tolist()],
    }
