"""Few bits at half of the steps, many at the others, in a fixed order: the alternatives to delta-GBS.

DVD-Quant (arXiv 2505.18663), Table 2. The paper does not say which step ABS starts with; low here.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vdqbench.quant.parts import Bits, Schedule, SchedulePart, Site
from vdqbench.quant.schedules.fixed import Constant
from vdqbench.quant.switching import require_levels, switched, with_activations

if TYPE_CHECKING:
    from torch import nn

    from vdqbench.clock import StepClock


def _shuffled(steps: int, seed: int) -> list[bool]:
    draw = random.Random(seed)
    order = sorted((draw.random(), step) for step in range(steps))
    low = {step for _, step in order[: steps // 2]}
    return [step not in low for step in range(steps)]


ORDERS: dict[str, Callable[[int, int], list[bool]]] = {
    "stp": lambda steps, seed: [step >= steps // 2 for step in range(steps)],
    "itp": lambda steps, seed: [step < steps - steps // 2 for step in range(steps)],
    "abs": lambda steps, seed: [step % 2 == 1 or step == steps - 1 for step in range(steps)],
    "sba": _shuffled,
}
"""Whether each step has many bits: half of them, and one more of an odd number."""


@dataclass(frozen=True)
class Pattern(SchedulePart):
    """Options of the order.

    Args:
        order: `stp` low in the first half, `itp` low in the second, `abs` low and high in turns, `sba` a random permutation.
        low, high: activation bits; layers whose own bits lie strictly between them are switched, the others are not.
        seed: of `sba`.
    """

    order: str = "stp"
    low: int = 4
    high: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        self.choice("order", ORDERS)
        require_levels(self, self.low, self.high)

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.order != "sba":
            del options["seed"]
        return options

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        return Patterned(self, clock)

    def plan(self, site: Site, steps: int, chosen: Sequence[int] | None = None) -> list[Bits]:
        return with_activations(site.plan(steps), self.levels(steps), self.low, self.high)

    def levels(self, steps: int) -> list[int]:
        """Activation bits of the switched layers at each step."""
        return [self.high if many else self.low for many in ORDERS[self.order](steps, self.seed)]


class Patterned(Schedule):
    """The pattern along the trajectory in progress."""

    def __init__(self, part: Pattern, clock: StepClock) -> None:
        self.part, self.clock, self.own = part, clock, Constant(clock)
        self.levels = lru_cache(part.levels)

    def bits(self, site: Site) -> Bits:
        weight, activation = self.own.bits(site)
        if not switched(activation, self.part.low, self.part.high):
            return weight, activation
        return weight, self.levels(self.clock.steps)[self.clock.index(self.clock.steps)]
