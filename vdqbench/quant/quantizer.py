"""Quantization of tensors to a scaled grid: pure functions. Parameters are float32, rounding is half to even, 0 is on every grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vdqbench.quant.format import Format

SMALLEST_DELTA = 1e-12
"""Lower bound of each scale by itself: a dead channel gets a tiny grid and touches no other channel."""
INTEGERS = Format(8)
"""Any format of integers: they all round alike."""


class QParams(NamedTuple):
    """Step and zero point of a grid, float32, of shapes that broadcast to the tensor."""

    delta: Tensor
    zero: Tensor

    def centred_bounds(self, fmt: Format) -> tuple[Tensor, Tensor]:
        """Smallest and largest code minus the zero point."""
        return fmt.qmin - self.zero, fmt.qmax - self.zero


def choose_qparams(lo: Tensor, hi: Tensor, fmt: Format) -> QParams:
    """The grid that covers [min(lo, 0), max(hi, 0)].

    Asymmetric: delta = (hi - lo) / (2^b - 1), zero = round(-lo / delta). Symmetric: delta = max(-lo, hi) / (2^(b-1) - 1),
    zero = 0.

    >>> weight = torch.tensor([[-1.0, 0.25, 0.5, 2.0], [0.1, 0.2, 0.3, 0.4]])
    >>> params = choose_qparams(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True), Format(4))
    >>> quantize(weight, params, Format(4)).int().tolist()
    [[0, 6, 7, 15], [4, 8, 11, 15]]
    """
    lo, hi = lo.float().clamp(max=0), hi.float().clamp(min=0)
    if fmt.symmetric:
        delta = (torch.maximum(-lo, hi) / fmt.qmax).clamp(min=SMALLEST_DELTA)
        return QParams(delta, torch.zeros_like(delta))
    delta = ((hi - lo) / fmt.qmax).clamp(min=SMALLEST_DELTA)
    return QParams(delta, (-lo * delta.reciprocal()).round().clamp(0, fmt.qmax))


def rounded(x: Tensor, scale: Tensor | float, out: Tensor | None = None, fmt: Format = INTEGERS) -> Tensor:
    """round(x * scale), half to even, in new memory or in `out`; half precision is computed in float32.

    Rounds to whole numbers, or to the values of a format of floating point.

    With q = clamp(round(x / delta) + zero, qmin, qmax), q - zero is this for scale = 1 / delta, clamped to `centred_bounds`:
    neither the zero point nor smoothing factors in `scale` cost a pass over the tensor.
    """
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    return fmt.round_(torch.mul(x, scale, out=out))


def centred_codes(x: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Codes minus their zero point: clamp(round(x / delta), qmin - zero, qmax - zero), the division as a product with 1 / delta."""
    codes = rounded(x, params.delta.reciprocal(), fmt=fmt)
    low, high = params.centred_bounds(fmt)
    return torch.minimum(torch.maximum(codes, low, out=codes), high, out=codes)


def quantize(x: Tensor, params: QParams, fmt: Format) -> Tensor:
    """Codes in [qmin, qmax] as floats: clamp(round(x / delta) + zero)."""
    return centred_codes(x, params, fmt) + params.zero


def dequantize(codes: Tensor, params: QParams) -> Tensor:
    """(codes - zero) * delta."""
    return (codes - params.zero) * params.delta


def fake_quantize(x: Tensor, params: QParams, fmt: Format) -> Tensor:
    """x rounded to the grid, as float: dequantize(quantize(x))."""
    return centred_codes(x, params, fmt) * params.delta


@dataclass(frozen=True)
class QTensor:
    """A tensor on a grid.

    Attributes:
        centred: codes minus zero point, of the tensor's shape: whole numbers, or values of a format of floating point.
    """

    centred: Tensor
    params: QParams
    fmt: Format

    @property
    def codes(self) -> Tensor:
        """In [qmin, qmax]."""
        return self.centred + self.params.zero

    def dequantize(self) -> Tensor:
        return self.centred * self.params.delta


@dataclass(frozen=True)
class Coded:
    """An input as codes minus zero point and their step: values * delta is what the layer sees."""

    values: Tensor
    delta: Tensor | float
