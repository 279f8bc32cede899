"""The same bits at every step, but where the sites say otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.parts import Bits, Schedule, SchedulePart, Site

if TYPE_CHECKING:
    from torch import nn

    from vdqbench.clock import StepClock


@dataclass(frozen=True)
class Fixed(SchedulePart):
    """No options."""

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        return Constant(clock)

    def plan(self, site: Site, steps: int, chosen: Sequence[int] | None = None) -> list[Bits]:
        return site.plan(steps)


class Constant(Schedule):
    """Each layer's own bits."""

    def __init__(self, clock: StepClock) -> None:
        self.clock = clock

    def bits(self, site: Site) -> Bits:
        if site.timed:
            return site.timed[self.clock.index(len(site.timed))]
        return site.weight_bits, site.activation_bits
