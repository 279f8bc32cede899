"""Static grids: ranges of the input found in calibration, one for each range of steps, nothing computed at run time.

CW+TW, TSW and the static half of ASQ and TSQ (arXiv 2502.15077, Eq. 1, per tensor), and Q-Diffusion's and QVD's linear
quantization (`mse`). Parameters are indexed by the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.format import Format, make
from vdqbench.quant.observer import OBSERVERS, by_range, percentile_range, searched_range
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView

SAMPLED = ("percentile", "mse", "sampled_minmax")
"""Observers that look at samples of the input, not at its recorded extremes."""


@dataclass(frozen=True)
class Static(ActivationPart):
    """Options of static grids.

    Args:
        per: `tensor`: delta and zero point are two scalars.
        ranges: number of equal parts of the steps with their own.
        observer: what makes a range. Of the smallest and largest value of each update (one each prompt and step, prompt by prompt):
            `minmax` covers all, `ema` averages with `momentum`, `last` takes the last update. Of the tokens that
            `method.calibration` samples, and so also behind transforms that extremes do not follow, such as a rotation:
            `percentile`, `mse` (the smallest error of order 2.4 among 80 ranges), and `sampled_minmax` (all of the samples, which
            are not all of the values).
        momentum: of `ema`.
        percentile: of `percentile`, in (50, 100]; as many values are left out at the lower end.
        symmetric: grid without zero point.
        split_branches: own parameters for the conditional and the unconditional branch, where the layer sees both apart. Samples
            do not tell the branches apart.
    """

    per: str = "tensor"
    ranges: int = 1
    observer: str = "minmax"
    momentum: float = 0.95
    percentile: float = 99.9
    symmetric: bool = False
    split_branches: bool = False

    def __post_init__(self) -> None:
        self.choice("per", ("tensor",))
        self.choice("observer", (*OBSERVERS, *SAMPLED))
        self.require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)")
        self.require(50 < self.percentile <= 100, "percentile", "a number in (50, 100]")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("calls",) if self.observer in SAMPLED else ("min", "max")

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        for option, observer in (("momentum", "ema"), ("percentile", "percentile")):
            if self.observer != observer:
                del options[option]
        if self.observer == "mse":
            options["version"] = 2  # the error is measured on values of all channels
        return options

    def fit(self, views: Sequence[LayerView]) -> StaticRange:
        import torch

        family = views[0].site.formats[1]
        if self.observer in SAMPLED:
            return self._sampled(views, family)
        lo = torch.cat([view.statistic("min").amin(-1) for view in views], dim=1)  # [P, K, branches]
        hi = torch.cat([view.statistic("max").amax(-1) for view in views], dim=1)
        if not self.split_branches:
            lo, hi = lo.amin(-1, keepdim=True), hi.amax(-1, keepdim=True)
        lo, hi = OBSERVERS[self.observer](by_range(lo, self.ranges), by_range(hi, self.ranges), self.momentum)
        return StaticRange(lo, hi, self.symmetric, family)

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return self.ranges * (1 if self.symmetric else 2) * (2 if self.split_branches else 1)

    def _sampled(self, views: Sequence[LayerView], family: str) -> StaticRange:
        import torch

        from vdqbench.quant.temporal import samples_by_range

        if self.split_branches:
            raise Unsupported(
                f"{self.key('split_branches')}=True needs the extremes of each guidance branch, which samples do not tell apart: "
                f"{self.key('observer')}={self.observer} must be one of {', '.join(OBSERVERS)}"
            )
        samples = samples_by_range(views, self.ranges)
        percentile = self.percentile if self.observer == "percentile" else 100.0
        bounds = [percentile_range(values, percentile) for values in samples]
        lo, hi = (torch.stack(ends).unsqueeze(1).cpu() for ends in zip(*bounds, strict=True))
        if self.observer == "mse":
            return SearchedRange(lo, hi, self.symmetric, family, lambda: samples_by_range(views, self.ranges))
        return StaticRange(lo, hi, self.symmetric, family)


class StaticRange(Activation):
    """Smallest and largest input of one layer, [ranges, branches] each."""

    def __init__(self, lo: Tensor, hi: Tensor, symmetric: bool, family: str = "int") -> None:
        self.lo, self.hi, self.symmetric, self.family = lo, hi, symmetric, family
        self.ranges, self.branches = lo.shape

    def bounds(self, fmt: Format) -> tuple[Tensor, Tensor]:
        """[ranges, branches] each, for a number format."""
        return self.lo, self.hi

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        fmt = make(self.family, bits, self.symmetric)
        lo, hi = self.bounds(fmt)
        grids = [Affine.of(lo[index, i], hi[index, i], fmt, multiplier) for i in range(self.branches)]
        if branch in ("cond", "uncond"):
            return grids[-1 if branch == "uncond" else 0]
        return grids[0] if len(grids) == 1 else Halves(*(grids if branch == "both" else grids[::-1]))


class SearchedRange(StaticRange):
    """Ranges of smallest error, which depend on the number of bits: searched for when a schedule first asks for them."""

    def __init__(self, lo: Tensor, hi: Tensor, symmetric: bool, family: str, samples: Callable[[], list[Tensor]]) -> None:
        super().__init__(lo, hi, symmetric, family)
        self.samples = samples
        self.found: dict[Format, tuple[Tensor, Tensor]] = {}

    def bounds(self, fmt: Format) -> tuple[Tensor, Tensor]:
        import torch

        if fmt not in self.found:
            ends = zip(*(searched_range(values, fmt) for values in self.samples()), strict=True)
            lo, hi = (torch.stack(end).unsqueeze(1).cpu() for end in ends)
            self.found[fmt] = lo, hi
        return self.found[fmt]


@dataclass(frozen=True)
class Affine:
    """x to clamp(round(x * scale), low, high), to be multiplied by delta; scale is the channels' multiplier / delta."""

    scale: Tensor | float
    low: float
    high: float
    delta: float
    fmt: Format

    @classmethod
    def of(cls, lo: Tensor, hi: Tensor, fmt: Format, multiplier: Tensor | None) -> Affine:
        from vdqbench.quant.quantizer import choose_qparams

        params = choose_qparams(lo, hi, fmt)
        low, high = (float(bound) for bound in params.centred_bounds(fmt))
        delta = float(params.delta)
        scale = float(params.delta.reciprocal()) if multiplier is None else (multiplier.double() / delta).float()
        return cls(scale, low, high, delta, fmt)

    def __call__(self, x: Tensor) -> Coded:
        from vdqbench.quant.quantizer import Coded, rounded

        return Coded(rounded(x, self.scale, fmt=self.fmt).clamp_(self.low, self.high), self.delta)


@dataclass(frozen=True)
class Halves:
    """Both halves of dimension 0, each on its own grid."""

    first: Affine
    second: Affine

    def __call__(self, x: Tensor) -> Coded:
        import torch

        from vdqbench.quant.quantizer import Coded

        halves = [grid(half) for grid, half in zip((self.first, self.second), x.chunk(2), strict=True)]
        return Coded(torch.cat([coded.values.mul_(coded.delta) for coded in halves]), 1.0)
