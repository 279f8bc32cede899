"""Adds up how much something changes from step to step and says when it was enough: what delta-GBS and TeaCache share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-30


class Accumulator:
    """Adds up changes and starts from 0 again once their sum has reached a threshold.

    An infinite change always reaches it, and so does one that is not a number.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold, self.total = threshold, 0.0

    def add(self, change: float) -> bool:
        """Whether the sum has reached the threshold with this change."""
        self.total += change
        if self.total < self.threshold:
            return False
        self.total = 0.0
        return True


def relative_change(new: Tensor, old: Tensor) -> Tensor:
    """||new - old||_1 / ||old||_1 as a float32 scalar on their device."""
    new, old = new.float(), old.float()
    return (new - old).abs().mean() / old.abs().mean().clamp(min=TINY)
