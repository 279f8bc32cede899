"""How much the denoiser's output changes from step to step, and which steps delta-GBS would run with few bits (DVD-Quant, Eq. 4)."""

from __future__ import annotations

import math

import pandas as pd
from torch import Tensor

from vdqbench.quant.accumulator import Accumulator

DELTA = 0.1
"""Threshold of delta-GBS; the paper varies it from 0.06 to 0.18 (Fig. 6)."""


def few_bits(changes: list[float], delta: float = DELTA) -> list[bool]:
    """For each step of a trajectory whether delta-GBS gives it few bits, from the changes of steps 1, 2, ...

    A step is decided by changes that are finished before it; the first two have none and get many bits.
    """
    accumulator = Accumulator(delta)
    return [not accumulator.add(change) for change in [math.inf, math.inf, *changes[:-1]]]


def by_step(changes: Tensor, delta: float = DELTA) -> pd.DataFrame:
    """Relative changes [P, K - 1] of P trajectories.

    Returns:
        Columns prompt, step (0 .. K - 1), change (to the output of the step before; NaN at step 0), low (few bits by delta-GBS).
    """
    rows = []
    for prompt, own in enumerate(changes.tolist()):
        pairs = zip([math.nan, *own], few_bits(own, delta), strict=True)
        rows += [(prompt, step, change, low) for step, (change, low) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["prompt", "step", "change", "low"])
