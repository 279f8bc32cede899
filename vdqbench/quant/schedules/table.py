"""Bits written down for each of equal parts of the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import Bits, Schedule, SchedulePart, Site
from vdqbench.quant.schedules.fixed import Constant
from vdqbench.quant.switching import switched

if TYPE_CHECKING:
    from torch import nn

    from vdqbench.clock import StepClock


@dataclass(frozen=True)
class Table(SchedulePart):
    """Options of the table.

    Args:
        activation: bits in each of as many parts of the steps as it has entries, 2..15, or 16 for floating point; layers whose
            own activation bits lie strictly between its smallest and its largest entry are switched, the others are not.
        weight: the same of weights, switched by their own bits; empty leaves them as they are.
    """

    activation: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for option, row in (("activation", self.activation), ("weight", self.weight)):
            whole = all(type(bits) is int and 2 <= bits <= FLOAT_BITS for bits in row)
            self.require(whole, option, f"a list of whole numbers in 2..{FLOAT_BITS}")
        self.require(bool(self.activation or self.weight), "activation", "given (or method.schedule.weight)")

    def check(self, steps: int) -> None:
        for option, row in (("activation", self.activation), ("weight", self.weight)):
            self.require(len(row) <= steps, option, f"a list of at most as many parts as the {steps} steps of the sampler")

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        return Tabled(self, clock)

    def plan(self, site: Site, steps: int, chosen: Sequence[int] | None = None) -> list[Bits]:
        return [self.at(own, step, steps) for step, own in enumerate(site.plan(steps))]

    def at(self, own: Bits, step: int, steps: int) -> Bits:
        """The bits of a layer of these bits at a step."""
        weight, activation = own
        return _entry(self.weight, weight, step, steps), _entry(self.activation, activation, step, steps)


def _entry(row: Sequence[float], own: int | None, step: int, steps: int) -> int | None:
    if not row or not switched(own, int(min(row)), int(max(row))):
        return own
    bits = int(row[step * len(row) // steps])
    return None if bits == FLOAT_BITS else bits


class Tabled(Schedule):
    """The table along the trajectory in progress."""

    def __init__(self, part: Table, clock: StepClock) -> None:
        self.part, self.clock, self.own = part, clock, Constant(clock)

    def bits(self, site: Site) -> Bits:
        return self.part.at(self.own.bits(site), self.clock.index(self.clock.steps), self.clock.steps)
