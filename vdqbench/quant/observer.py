"""From what calibration saw, update by update, to one statistic for each range of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


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
