"""What a quantized number is (bits, signedness, floating point or not) and which numbers share one scale (granularity), as plain values."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log2
from typing import TYPE_CHECKING, ClassVar

from vdqbench.errors import Unsupported

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

    block: ClassVar[int] = 0
    """Number of neighbouring channels that share a scale of the format's own; 0 where the grid of the recipe gives the scale."""
    of_tensor: ClassVar[bool] = False
    """Whether scales of the format's own depend on the whole tensor, and so on all videos of a batch."""

    @property
    def stored_bits(self) -> float:
        """Bits of an element, with its share of the format's own scales."""
        return float(self.bits)

    @property
    def qmin(self) -> int:
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def round_(self, x: Tensor) -> Tensor:
        """Each element to the nearest value of the format, ties to even, in place; values beyond the largest are left to clamping."""
        return x.round_()


@dataclass(frozen=True, kw_only=True)
class FloatFormat(Format):
    """Floating point of few bits, without infinities: what is too large becomes the largest value.

    Its grid has no zero point, and the scale of the recipe maps the largest magnitude to the largest value.

    Attributes:
        exponent, mantissa: bits of each; the exponent's bias is 2^(exponent - 1) - 1, and exponent 0 is subnormal.
        largest: value (E4M3 uses all but one of the codes of its last exponent for numbers, E5M2 none, as in IEEE 754).
    """

    symmetric: bool = True
    exponent: int
    mantissa: int
    largest: float

    @property
    def qmin(self) -> float:  # type: ignore[override]  # E2M3 ends at 7.5
        return -self.largest

    @property
    def qmax(self) -> float:  # type: ignore[override]
        return self.largest

    @property
    def lowest_exponent(self) -> int:
        """Of the normal values."""
        return 2 - 2 ** (self.exponent - 1)

    def round_(self, x: Tensor) -> Tensor:
        """As `Format.round_`, for float32 and float64: the step is 2^(exponent of the element - mantissa)."""
        import torch

        word, width, bias = (torch.int64, 52, 1023) if x.dtype == torch.float64 else (torch.int32, 23, 127)
        exponents = x.view(word).bitwise_and((2 * bias + 1) << width).clamp_(min=(bias + self.lowest_exponent) << width)
        step = exponents.sub_(self.mantissa << width).view(x.dtype)
        return x.div_(step).round_().mul_(step)


@dataclass(frozen=True, kw_only=True)
class BlockFormat(FloatFormat):
    """Floating point whose blocks of neighbouring input channels have 8-bit scales of their own, found from the values at hand.

    No range search reaches it: of a recipe, the transforms, sites and schedule decide what it is given.
    """

    @property
    def stored_bits(self) -> float:
        return self.bits + 8 / self.block

    def scales(self, largest: Tensor) -> Tensor:
        """The scale of each block, float32, from its largest magnitude."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class MXFormat(BlockFormat):
    """OCP Microscaling (MX) v1.0: blocks of 32 whose scale is a power of two (E8M0).

    The scale is 2^(floor(log2 of the largest magnitude) - exponent of the format's largest value) (Sec. 6.3 of the
    specification), so that values in the last part of a binade saturate.
    """

    block = 32

    def scales(self, largest: Tensor) -> Tensor:
        import torch

        power = largest.float().view(torch.int32).bitwise_and(0xFF << 23).view(torch.float32)
        return power.mul_(2.0 ** -floor(log2(self.largest))).clamp_(min=2.0**-127)


@dataclass(frozen=True, kw_only=True)
class NVFormat(BlockFormat):
    """NVFP4: blocks of 16 whose scale is an E4M3 value times a float32 of the tensor.

    The tensor's factor maps its largest magnitude to the largest value of the largest scale; scales that would round to 0
    are the smallest E4M3 value, 2^-9.
    """

    block = 16
    of_tensor = True

    def scales(self, largest: Tensor) -> Tensor:
        import torch

        largest = largest.float()
        whole = (largest.amax() / (E4M3.largest * self.largest)).clamp(min=torch.finfo(torch.float32).tiny)
        return E4M3.round_(largest / self.largest / whole).clamp_(2.0**-9, E4M3.largest) * whole


E4M3 = FloatFormat(8, exponent=4, mantissa=3, largest=448.0)
E5M2 = FloatFormat(8, exponent=5, mantissa=2, largest=57344.0)
E2M3 = FloatFormat(6, exponent=2, mantissa=3, largest=7.5)
E3M2 = FloatFormat(6, exponent=3, mantissa=2, largest=28.0)
E2M1 = FloatFormat(4, exponent=2, mantissa=1, largest=6.0)

FLOAT_FAMILIES: dict[str, tuple[FloatFormat, ...]] = {
    "fp": (E4M3, E2M3, E2M1),
    "fp_wide": (E5M2, E3M2),
    "mx": tuple(MXFormat(**vars(element)) for element in (E4M3, E2M3, E2M1)),
    "mx_wide": tuple(MXFormat(**vars(element)) for element in (E5M2, E3M2)),
    "nv": (NVFormat(**vars(E2M1)),),
}
"""FP8, FP6 and FP4 with most bits in the mantissa (E4M3, E2M3, E2M1) or in the exponent (`_wide`: E5M2, E3M2); MXFP8, MXFP6,
MXFP4 with the same elements; NVFP4."""


def families() -> list[str]:
    """Names of the families of number formats."""
    return ["int", *FLOAT_FAMILIES]


def of_tensor(name: str) -> bool:
    """Whether a family has formats whose scales depend on the whole tensor."""
    return any(member.of_tensor for member in FLOAT_FAMILIES.get(name, ()))


def make(name: str, bits: int, symmetric: bool = False) -> Format:
    """The number format of a family with so many bits; `symmetric` is of integers alone, the others are.

    Raises:
        Unsupported: the family has no member of so many bits.
    """
    if name == "int":
        return Format(bits, symmetric)
    members = FLOAT_FAMILIES[name]
    for member in members:
        if member.bits == bits:
            return member
    widths = " or ".join(str(member.bits) for member in members)
    raise Unsupported(f"bits.format={name} has no numbers of {bits} bits: give such layers {widths}, or 16 for floating point")


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


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale."""

    def dims(self, ndim: int) -> tuple[int, ...]:
        return tuple(range(ndim))


@dataclass(frozen=True)
class PerToken(Granularity):
    """One scale for each vector along the last dimension: [..., C] has as many scales as tokens in the whole batch."""

    def dims(self, ndim: int) -> tuple[int, ...]:
        return (ndim - 1,)
