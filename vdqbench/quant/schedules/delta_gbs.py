"""delta-guided bit switching: many bits where the denoiser's output has changed enough since they were last used.

DVD-Quant (arXiv 2505.18663): changes ||F_t - F_(t-1)||_1 / ||F_(t-1)||_1 of the outputs F of finished steps are added up; below
`delta` a step gets few bits, else many, and the sum starts anew. The first two steps, which have no change before them, get
many, as in the paper's figure. The paper does not report delta; it varies it from 0.06 to 0.18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.accumulator import Accumulator, relative_change
from vdqbench.quant.parts import Bits, Schedule, SchedulePart, Site
from vdqbench.quant.schedules.fixed import Constant
from vdqbench.quant.switching import nominal, require_levels, switched, with_activations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vdqbench.clock import StepClock


@dataclass(frozen=True)
class DeltaGbs(SchedulePart):
    """Options of the switch.

    Args:
        delta: accumulated relative change that asks for many bits; 0 always has many, infinity few after the first two steps.
        low, high: activation bits; layers whose own bits lie strictly between them are switched, the others are not.
    """

    delta: float = 0.1
    low: int = 4
    high: int = 8

    def __post_init__(self) -> None:
        self.require(self.delta >= 0, "delta", "a number of at least 0")
        require_levels(self, self.low, self.high)

    @property
    def batch_dependent(self) -> bool:
        return True

    def start(self, denoiser: nn.Module, clock: StepClock) -> Schedule:
        return Switch(self, denoiser, clock)

    def plan(self, site: Site, steps: int, chosen: Sequence[int] | None = None) -> list[Bits]:
        plan = site.plan(steps)
        if chosen is None:
            return nominal(plan, self.low, self.high)
        return with_activations(plan, chosen, self.low, self.high)


class Switch(Schedule):
    """Watches the denoiser's output, and decides at the beginning of each step, with one number read from the device.

    The conditional branch counts: its half of dimension 0 where the branches are batched, the conditional call of two.
    """

    def __init__(self, part: DeltaGbs, denoiser: nn.Module, clock: StepClock) -> None:
        self.part, self.clock, self.own = part, clock, Constant(clock)
        self.output: tuple[int, Tensor] | None
        self.change: tuple[int, Tensor] | None
        self.hooks = [denoiser.register_forward_pre_hook(self._decide), denoiser.register_forward_hook(self._watch)]
        self._begin()

    def bits(self, site: Site) -> Bits:
        weight, activation = self.own.bits(site)
        if not switched(activation, self.part.low, self.part.high):
            return weight, activation
        return weight, self.decisions.get(self.clock.step, self.part.high)

    def chosen(self) -> list[int]:
        return [self.decisions[step] for step in sorted(self.decisions)]

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.output, self.change = [], None, None

    def _begin(self) -> None:
        self.trajectory, self.sum = self.clock.trajectory, Accumulator(self.part.delta)
        self.decisions: dict[int, int] = {}
        self.output = self.change = None

    def _decide(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self.clock.trajectory != self.trajectory:
            self._begin()
        step = self.clock.step
        if step in self.decisions:
            return
        known = self.change is not None and self.change[0] == step - 1
        change = float(self.change[1]) if known and self.change is not None else math.inf
        self.decisions[step] = self.part.high if self.sum.add(change) else self.part.low

    def _watch(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        import torch

        from vdqbench.quant.evidence import first_tensor

        if self.clock.branch == "uncond":
            return
        found = self.clock.conditional(first_tensor(output).detach())
        step, new = self.clock.step, found.to(torch.float32, copy=True)
        before, self.output = self.output, (step, new)
        follows = before is not None and before[0] == step - 1 and before[1].shape == new.shape
        self.change = (step, relative_change(new, before[1])) if follows and before is not None else None
