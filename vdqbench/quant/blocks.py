"""Formats that bring their own scales: blocks of neighbouring channels, each divided by its scale and rounded.

The last block of a width that is no multiple of the block is shorter.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.quant.format import BlockFormat, Format
from vdqbench.quant.quantizer import Coded, QParams, QTensor


def quantize_blocks(x: Tensor, fmt: Format, dim: int) -> QTensor:
    """A tensor in a block format, its blocks along `dim`; the steps have the tensor's shape, the zero points are 0."""
    codes, scales = _coded(x.float(), fmt, dim)
    delta = _joined(scales.expand_as(codes), x, dim)
    return QTensor(_joined(codes, x, dim), QParams(delta, torch.zeros_like(delta)), fmt)


def block_encoder(fmt: Format, dim: int, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
    """What puts an input into a block format, the scales found at every call.

    Args:
        dim: of the channels.
        multiplier: factors by which the channels are multiplied first; broadcasts to the input.
    """

    def encode(x: Tensor) -> Coded:
        codes, scales = _coded(x.float() if multiplier is None else x.float() * multiplier, fmt, dim)
        return Coded(_joined(codes.mul_(scales), x, dim), 1.0)

    return encode


def _coded(x: Tensor, fmt: Format, dim: int) -> tuple[Tensor, Tensor]:
    """Values of the format [..., blocks, block, ...] and the scale of each block [..., blocks, 1, ...]."""
    assert isinstance(fmt, BlockFormat)
    dim %= x.ndim
    if missing := -x.shape[dim] % fmt.block:
        x = F.pad(x, [*(0, 0) * (x.ndim - 1 - dim), 0, missing])
    blocks = x.unflatten(dim, (-1, fmt.block))
    scales = fmt.scales(blocks.abs().amax(dim + 1, keepdim=True))
    return fmt.round_(blocks / scales).clamp_(fmt.qmin, fmt.qmax), scales


def _joined(blocks: Tensor, like: Tensor, dim: int) -> Tensor:
    """Blocks side by side again, without what was added to the last one."""
    dim %= like.ndim
    return blocks.flatten(dim, dim + 1).narrow(dim, 0, like.shape[dim])
