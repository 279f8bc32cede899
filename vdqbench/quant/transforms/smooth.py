"""Smoothing: inputs are divided and weights multiplied by s, channel by channel, so that inputs lose their outliers.

s_j = A_j^alpha / (max_i |W_ij|)^(1 - alpha): SmoothQuant (arXiv 2211.10438, Eq. 4), ViDiT-Q's channel balancing, and Eq. 2
of ASQ/TSQ (arXiv 2502.15077), which with N ranges has a vector s for each N-th of the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.observer import by_range, ema
from vdqbench.quant.parts import Transform, TransformPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView

STATISTICS = ("ema", "max", "mean")


@dataclass(frozen=True)
class Smooth(TransformPart):
    """Options of smoothing.

    Args:
        alpha: 0 leaves the input's outliers where they are, 1 moves them all into the weight.
        ranges: number of equal parts of the steps with their own s.
        statistic: A_j. `ema` and `mean` average over updates (one each prompt and step, prompt by prompt) the mean over
            dimension 0 of the largest |x| over tokens; `max` is the largest |x| of all.
        momentum: of `ema`.
        floor: smallest A_j and max |W_ij|.
        share_qkv: one s for the layers of a module that read the same input, from the largest weight of all of them.
    """

    alpha: float = 0.5
    ranges: int = 1
    statistic: str = "ema"
    momentum: float = 0.95
    floor: float = 1e-5
    share_qkv: bool = False

    needs = ("mean_max", "min", "max")

    def __post_init__(self) -> None:
        self.require(0 <= self.alpha <= 1, "alpha", "a number in [0, 1]")
        self.require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)")
        self.require(self.floor > 0, "floor", "a positive number")
        self.choice("statistic", STATISTICS)

    @property
    def shared(self) -> bool:
        return self.share_qkv

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.statistic != "ema":
            del options["momentum"]
        return options

    def fit(self, view: LayerView) -> Diagonal:
        largest = self._input_size(view).clamp(min=self.floor)
        channels = view.master.shape[1]
        if channels != len(largest):
            raise Unsupported(
                f"layer {view.site.name} is a grouped convolution, which smoothing does not support; list it in method.sites.keep_fp"
            )
        weights = view.peer_weights if self.share_qkv else [view.weight]
        weight = max_of([w.abs().transpose(0, 1).flatten(1).amax(1) for w in weights]).clamp(min=self.floor).cpu()
        return Diagonal((largest**self.alpha / weight ** (1 - self.alpha)).to(view.master.device))

    def values(self, channels: int) -> int:
        return self.ranges * channels

    def _input_size(self, view: LayerView) -> Tensor:
        """A, [Cin]."""
        if self.statistic == "max":
            lo, hi = view.statistic("min"), view.statistic("max")
            return max_of([-lo, hi]).flatten(0, -2).amax(0)
        updates = by_range(view.statistic("mean_max"), 1)
        return ema(updates, self.momentum)[0] if self.statistic == "ema" else updates[0].mean(0)


@dataclass(frozen=True)
class Diagonal(Transform):
    """T = diag(1 / s); s [Cin], positive."""

    s: Tensor

    def multiplier(self) -> Tensor:
        return self.s.reciprocal()

    def weight(self, weight: Tensor) -> Tensor:
        return weight * self.s.view(-1, *(1,) * (weight.ndim - 2))

    def statistics(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {name: value / self.s.to(value.device) for name, value in statistics.items() if name in Smooth.needs}


def max_of(tensors: list[Tensor]) -> Tensor:
    """Elementwise maximum."""
    largest = tensors[0]
    for tensor in tensors[1:]:
        largest = largest.maximum(tensor)
    return largest
