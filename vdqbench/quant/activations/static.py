"""Static grids: ranges of the input found in calibration, one for each range of steps, nothing computed at run time.

CW+TW, TSW and the static half of ASQ and TSQ (arXiv 2502.15077, Eq. 1, per tensor). Parameters are indexed by the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.format import Format
from vdqbench.quant.observer import OBSERVERS, by_range
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class Static(ActivationPart):
    """Options of static grids.

    Args:
        per: `tensor`: delta and zero point are two scalars.
        ranges: number of equal parts of the steps with their own.
        observer: how the smallest and largest value of each update (one each prompt and step, prompt by prompt) make a range:
            `minmax` covers all, `ema` averages with `momentum`, `last` takes the last update.
        momentum: of `ema`.
        symmetric: grid without zero point.
        split_branches: own parameters for the conditional and the unconditional branch, where the layer sees both apart.
    """

    per: str = "tensor"
    ranges: int = 1
    observer: str = "minmax"
    momentum: float = 0.95
    symmetric: bool = False
    split_branches: bool = False

    needs = ("min", "max")

    def __post_init__(self) -> None:
        self.choice("per", ("tensor",))
        self.choice("observer", OBSERVERS)
        self.require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)")

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.observer != "ema":
            del options["momentum"]
        return options

    def fit(self, views: Sequence[LayerView]) -> StaticRange:
        import torch

        lo = torch.cat([view.statistic("min").amin(-1) for view in views], dim=1)  # [P, K, branches]
        hi = torch.cat([view.statistic("max").amax(-1) for view in views], dim=1)
        if not self.split_branches:
            lo, hi = lo.amin(-1, keepdim=True), hi.amax(-1, keepdim=True)
        lo, hi = OBSERVERS[self.observer](by_range(lo, self.ranges), by_range(hi, self.ranges), self.momentum)
        return StaticRange(lo, hi, self.symmetric)

    def values(self) -> int:
        return self.ranges * (1 if self.symmetric else 2) * (2 if self.split_branches else 1)


class StaticRange(Activation):
    """Smallest and largest input of one layer, [ranges, branches] each."""

    def __init__(self, lo: Tensor, hi: Tensor, symmetric: bool) -> None:
        self.lo, self.hi, self.symmetric = lo, hi, symmetric
        self.ranges, self.branches = lo.shape

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        fmt = Format(bits, self.symmetric)
        grids = [Affine.of(self.lo[index, i], self.hi[index, i], fmt, multiplier) for i in range(self.branches)]
        if branch != "both":
            return grids[-1 if branch == "uncond" else 0]
        return grids[0] if len(grids) == 1 else Halves(grids[0], grids[1])


@dataclass(frozen=True)
class Affine:
    """x to clamp(round(x * scale), low, high), to be multiplied by delta; scale is the channels' multiplier / delta."""

    scale: Tensor | float
    low: float
    high: float
    delta: float

    @classmethod
    def of(cls, lo: Tensor, hi: Tensor, fmt: Format, multiplier: Tensor | None) -> Affine:
        from vdqbench.quant.quantizer import choose_qparams

        params = choose_qparams(lo, hi, fmt)
        low, high = (float(bound) for bound in params.centred_bounds(fmt))
        delta = float(params.delta)
        scale = float(params.delta.reciprocal()) if multiplier is None else (multiplier.double() / delta).float()
        return cls(scale, low, high, delta)

    def __call__(self, x: Tensor) -> Coded:
        from vdqbench.quant.quantizer import Coded, rounded

        return Coded(rounded(x, self.scale).clamp_(self.low, self.high), self.delta)


@dataclass(frozen=True)
class Halves:
    """The conditional and the unconditional half of dimension 0, each on its own grid."""

    cond: Affine
    uncond: Affine

    def __call__(self, x: Tensor) -> Coded:
        import torch

        from vdqbench.quant.quantizer import Coded

        halves = [grid(half) for grid, half in zip((self.cond, self.uncond), x.chunk(2), strict=True)]
        return Coded(torch.cat([coded.values.mul_(coded.delta) for coded in halves]), 1.0)
