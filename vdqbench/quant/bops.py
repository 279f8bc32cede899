"""Bit operations and sizes on paper: what a quantized model costs by formula, from shapes and bit-widths alone.

A bit operation is counted per multiply-accumulate (MAC) of w-bit weights with a-bit activations. UNIQ (arXiv 1804.10969) counts
w a for the product, w + a + log2(n k^2) for the sum of n k^2 of them; QVD's numbers follow without the logarithm; many papers
count the product only. BOPs are computed and never measured, and say nothing about latency.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Literal, get_args

from vdqbench.errors import ConfigError, nearest

Formula = Literal["uniq_nolog", "uniq", "product"]
Bits = tuple[float, float]
"""Bits of weights and of activations."""


@dataclass(frozen=True)
class Operation:
    """Inner products that one part of a model computes in one forward pass.

    Attributes:
        name: dotted name of the layer, or of the module that multiplies two activations.
        kind: `linear`, `conv` or `matmul` (of two activations, as in attention).
        macs: multiply-accumulates.
        reduction: length of each inner product: input channels of a group times the kernel's size.
    """

    name: str
    kind: str
    macs: int
    reduction: int


def layer_macs(shape: Sequence[int], positions: int) -> int:
    """MACs of a linear layer or convolution with weight [Cout, Cin / groups, *kernel].

    Args:
        shape: of the weight.
        positions: tokens of a linear layer; output positions of a convolution, see `output_positions`; times the batch.
    """
    return prod(shape) * positions


def output_positions(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int] | None = None
) -> int:
    """Output positions of a convolution of any number of dimensions over an input of this size, for one sample.

    Raises:
        ValueError: the kernel does not fit into the padded input.
    """
    count = 1
    for side, k, s, p, d in zip(size, kernel, stride, padding, dilation or [1] * len(size), strict=True):
        positions = (side + 2 * p - d * (k - 1) - 1) // s + 1
        if positions < 1:
            raise ValueError(f"kernel {list(kernel)} with dilation {d} does not fit into {list(size)} padded by {list(padding)}")
        count *= positions
    return count


def bops(macs: float, weight_bits: float, activation_bits: float, formula: Formula = "uniq_nolog", reduction: float | None = None) -> float:
    """Bit operations of MACs at these bit-widths.

    `product`: MACs w a. `uniq_nolog`: MACs (w a + w + a). `uniq`: MACs (w a + w + a + log2(reduction)).

    Raises:
        ConfigError: an unknown formula.
        ValueError: `uniq` without the length of the inner products, or a negative number.
    """
    if formula not in get_args(Formula):
        raise ConfigError(f"bops formula={formula} is not known{nearest(formula, get_args(Formula))}")
    if min(macs, weight_bits, activation_bits) < 0:
        raise ValueError(f"macs={macs}, weight_bits={weight_bits} and activation_bits={activation_bits} must not be negative")
    per_mac = weight_bits * activation_bits
    if formula != "product":
        per_mac += weight_bits + activation_bits
    if formula == "uniq":
        if reduction is None or reduction < 1:
            raise ValueError(f"formula uniq needs the length of the inner products, at least 1, and got reduction={reduction}")
        per_mac += log2(reduction)
    return macs * per_mac


def total_bops(
    operations: Iterable[Operation],
    bits: Mapping[str, Bits],
    default: Bits,
    matmuls: Bits | None = None,
    formula: Formula = "uniq_nolog",
) -> dict[str, float]:
    """Bit operations of a whole forward pass.

    Args:
        operations: see `vdqbench.quant.macs.count`.
        bits: by name of the layer.
        default: of layers that `bits` does not name.
        matmuls: bits of the two factors of products of activations, as in attention; None leaves these products out.
        formula: see `bops`.

    Returns:
        `linear`, `conv`, `matmul` and their sum `total`.
    """
    parts = {"linear": 0.0, "conv": 0.0, "matmul": 0.0}
    for one in operations:
        pair = matmuls if one.kind == "matmul" else bits.get(one.name, default)
        if pair is not None:
            parts[one.kind] += bops(one.macs, *pair, formula, one.reduction)
    return {**parts, "total": sum(parts.values())}


def compression(
    parameters: int, quantized: int, channels: int, weight_bits: float, full_bits: float = 16, parameter_bits: float = 32
) -> float:
    """How many times smaller the weights become.

    parameters full_bits / ((parameters - quantized) full_bits + quantized weight_bits + channels parameter_bits)

    Args:
        parameters: of the model.
        quantized: elements of the quantized weights among them.
        channels: output channels of the quantized weights, each with its own scale and zero point.
        weight_bits: of the quantized weights.
        full_bits: of the others, and of all before.
        parameter_bits: of a channel's scale and zero point together (two 16-bit numbers in DVD-Quant's 3.68x).

    Raises:
        ValueError: more quantized elements than parameters.
    """
    if not 0 <= quantized <= parameters:
        raise ValueError(f"quantized={quantized} elements must lie in 0..{parameters}, the number of parameters")
    return parameters * full_bits / ((parameters - quantized) * full_bits + quantized * weight_bits + channels * parameter_bits)
