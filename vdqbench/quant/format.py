"""What a quantized number is (bits, signedness) and which numbers share one scale (granularity), as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

FLOAT_BITS = 16
"""Bits that mean "stays in floating point"."""


@dataclass(frozen=True)
class Format:
    """Integers of `bits` bits on a uniform grid.

    Asymmetric codes lie in [0, 2^b - 1] and the grid has a zero point; symmetric codes lie in [-2^(b-1), 2^(b-1) - 1]
    around 0, and the largest magnitude maps to 2^(b-1) - 1.
    """

    bits: int
    symmetric: bool = False

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


@dataclass(frozen=True)
class Granularity:
    """Which elements share one scale."""

    def dims(self, ndim: int) -> tuple[int, ...]:
        """The dimensions of a tensor along which the scale is the same."""
        raise NotImplementedError

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest element of each group, with size 1 in the shared dimensions."""
        dims = self.dims(x.ndim)
        return x.amin(dims, keepdim=True), x.amax(dims, keepdim=True)

    def groups(self, shape: tuple[int, ...]) -> int:
        """Number of scales of a tensor."""
        shared, count = self.dims(len(shape)), 1
        for dim, size in enumerate(shape):
            count *= 1 if dim in shared else size
        return count


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale."""

    def dims(self, ndim: int) -> tuple[int, ...]:
        return tuple(range(ndim))


@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale for each index of `axis`; the output channels of a weight are axis 0."""

    axis: int = 0

    def dims(self, ndim: int) -> tuple[int, ...]:
        return tuple(dim for dim in range(ndim) if dim != self.axis % ndim)


@dataclass(frozen=True)
class PerToken(Granularity):
    """One scale for each vector along the last dimension: [..., C] has as many scales as tokens in the whole batch."""

    def dims(self, ndim: int) -> tuple[int, ...]:
        return (ndim - 1,)
