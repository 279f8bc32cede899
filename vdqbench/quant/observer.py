"""From what calibration saw, update by update or sample by sample, to one range of values for each range of steps."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.format import Format

CANDIDATES = 80
"""Of the search for the range of smallest error: both ends times 1, 0.99, ..., 0.21, as in Q-Diffusion's code."""
NORM = 2.4
"""Exponent of its error."""


def by_range(values: Tensor, ranges: int) -> Tensor:
    """[P, K, ...] to [N, P * K/N, ...]: the updates of each of N ranges of steps, prompt by prompt, steps in visiting order."""
    return values.unflatten(1, (ranges, -1)).movedim(1, 0).flatten(1, 2)


def ema(updates: Tensor, momentum: float) -> Tensor:
    """Exponential moving average over dimension 1 of [N, U, ...]: A <- m A + (1 - m) a, started at the first update.

    Unrolled, update u weighs (1 - m) m^(U-1-u), the first m^(U-1).
    """
    last = updates.shape[1] - 1
    weights = [momentum**last] + [(1 - momentum) * momentum ** (last - u) for u in range(1, last + 1)]
    updates = updates.movedim(1, -1).double()
    return (updates @ updates.new_tensor(weights)).float()


def _minmax(lo: Tensor, hi: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    return lo.amin(1), hi.amax(1)


def _ema(lo: Tensor, hi: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    return ema(lo, momentum), ema(hi, momentum)


def _last(lo: Tensor, hi: Tensor, momentum: float) -> tuple[Tensor, Tensor]:
    return lo[:, -1], hi[:, -1]


OBSERVERS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {"minmax": _minmax, "ema": _ema, "last": _last}
"""Static range from the smallest and largest values of each update, [N, U, ...] each, and the momentum: [N, ...] each."""


def percentile_range(values: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """The percentile of values and its mirror image at the other end, by nearest rank: 100 is the smallest and the largest.

    Args:
        percentile: in (50, 100]; 99 leaves out the lowest and the highest hundredth.
    """
    flat = values.flatten()
    rank = min(max(ceil(percentile / 100 * len(flat) - 1e-9), 1), len(flat))
    return flat.kthvalue(len(flat) - rank + 1).values, flat.kthvalue(rank).values


MOST = 2**14
"""Values on which the error of a range is measured."""


def searched_range(values: Tensor, fmt: Format, candidates: int = CANDIDATES, norm: float = NORM) -> tuple[Tensor, Tensor]:
    """The range of smallest mean |x - Q(x)|^norm among the values' own times 1, 0.99, 0.98, ...; the widest of equal ones.

    The mean is over at most `MOST` of the values, drawn with a fixed seed; the range that is narrowed is that of all.
    """
    import torch

    from vdqbench.quant.quantizer import choose_qparams, fake_quantize

    flat = values.flatten().float()
    lo, hi = flat.amin(), flat.amax()
    if len(flat) > MOST:  # evenly spaced ones would be of some channels only
        flat = flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))[:MOST].to(flat.device)]
    factors = torch.arange(candidates, device=flat.device).mul(-0.01).add(1)
    errors = [
        (fake_quantize(flat, choose_qparams(lo * factor, hi * factor, fmt), fmt) - flat).abs_().pow_(norm).mean() for factor in factors
    ]
    best = factors[torch.stack(errors).argmin()]
    return lo * best, hi * best
