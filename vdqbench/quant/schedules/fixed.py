"""The same bits at every step."""

from __future__ import annotations

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
        return Constant()

    def plan(self, site: Site, steps: int) -> list[Bits]:
        return [(site.weight_bits, site.activation_bits)] * steps


class Constant(Schedule):
    """Each layer's own bits."""

    def bits(self, site: Site) -> Bits:
        return site.weight_bits, site.activation_bits
