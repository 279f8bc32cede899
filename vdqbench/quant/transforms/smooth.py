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
NORMED = ("self_attn.[qkv]", "temporal_attn.[qkv]", "cross_attn.q", "ffn.up", "proj_in")
"""Layers that read what a norm gives: where QVD (arXiv 2407.11585) scales channels."""


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
        weights = view.peer_weights if self.share_qkv else [view.weight]
        weight = weight_size(weights).clamp(min=self.floor).cpu()
        return Diagonal((largest**self.alpha / weight ** (1 - self.alpha)).to(view.device))

    def values(self, shape: tuple[int, ...]) -> int:
        return self.ranges * shape[1]

    def _input_size(self, view: LayerView) -> Tensor:
        """A, [Cin]."""
        if self.statistic == "max":
            lo, hi = input_bounds(view)
            return max_of([-lo, hi])
        checked(view, view.statistic("mean_max").shape[-1])
        updates = by_range(view.statistic("mean_max"), 1)
        return ema(updates, self.momentum)[0] if self.statistic == "ema" else updates[0].mean(0)


class Identity(Transform):
    """T = 1, at no cost."""

    def input(self, x: Tensor) -> Tensor:
        return x

    def weight(self, weight: Tensor) -> Tensor:
        return weight

    def statistics(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return statistics


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


def concerned(view: LayerView, part: TransformPart) -> bool:
    """Whether a part concerns a layer, or one that reads the same input in its module."""
    sites = view.required_evidence().views
    return any(part.concerns(sites[name].site) for name in view.group)


def input_bounds(view: LayerView) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each input channel in the view's steps, [Cin] float32 each.

    Raises:
        Unsupported: the layer is a grouped convolution.
    """
    lo, hi = view.statistic("min").flatten(0, -2).amin(0), view.statistic("max").flatten(0, -2).amax(0)
    checked(view, len(lo))
    return lo, hi


def weight_size(weights: list[Tensor]) -> Tensor:
    """The largest |w| of each input channel over some weights, [Cin]."""
    return max_of([weight.abs().transpose(0, 1).flatten(1).amax(1) for weight in weights])


def checked(view: LayerView, channels: int) -> None:
    """Raises Unsupported unless every output of a layer reads all of its input channels."""
    if view.weight.shape[1] != channels:
        raise Unsupported(
            f"layer {view.site.name} is a grouped convolution, which smoothing does not support; list it in method.sites.keep_fp"
        )


def max_of(tensors: list[Tensor]) -> Tensor:
    """Elementwise maximum."""
    largest = tensors[0]
    for tensor in tensors[1:]:
        largest = largest.maximum(tensor)
    return largest
