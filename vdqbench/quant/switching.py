"""Which layers a schedule switches between few and many bits: the rule that all schedules share.

A layer is switched where its own activation bits lie strictly between `low` and `high`. So one recipe serves a whole row of a
table: bits=w4a6 is switched between 4 and 8 bits, bits=w4a4 and bits=w4a8 stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from vdqbench.quant.parts import Bits, Part


def switched(bits: int | None, low: int, high: int) -> bool:
    """Whether a layer of so many bits (None: floating point) is switched."""
    return bits is not None and low < bits < high


def with_activations(plan: Sequence[Bits], chosen: Sequence[int], low: int, high: int) -> list[Bits]:
    """The bits of a layer at each step, with the chosen activation bits where it is switched."""
    return [(w, new if switched(a, low, high) else a) for (w, a), new in zip(plan, chosen, strict=True)]


def nominal(plan: Sequence[Bits], low: int, high: int) -> list[Bits]:
    """The bits of a layer before anything was chosen: high and low take turns so that their mean is the layer's own bits.

    The mean is exact where the number of steps allows it, and else at most (high - low) / steps above.
    """
    result = []
    for step, (weight, bits) in enumerate(plan):
        if bits is not None and switched(bits, low, high):
            part, whole = bits - low, high - low
            bits = high if -(-(step + 1) * part // whole) > -(-step * part // whole) else low
        result.append((weight, bits))
    return result


def require_levels(part: Part, low: int, high: int) -> None:
    """Raises ConfigError unless 2 <= low < high <= 15, for a part with these two options."""
    part.require(2 <= low <= 15, "low", "a whole number in 2..15")
    part.require(low < high <= 15, "high", f"a whole number above low={low} and at most 15")
