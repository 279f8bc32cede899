"""A weight as rows of numbers that share a scale, so that a search for scales is one piece of code for every granularity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdqbench.quant.quantizer import QParams


@dataclass(frozen=True)
class Rows:
    """Rows of weights that share a scale.

    Attributes:
        values: [R, n] float32; rows that are shorter than the longest end in zeros, which are on every grid and so add nothing
            to an error.
        count: [R, 1] float32, how many numbers of each row are weights.
        shape: of the weight.
        group_size: input channels of a group, if each row is one; else R is 1 or the number of output channels.
    """

    values: Tensor
    count: Tensor
    shape: tuple[int, ...]
    group_size: int | None

    @classmethod
    def of(cls, weight: Tensor, per: str, group_size: int | None = None) -> Rows:
        """The rows of a weight [Cout, Cin, ...] that is quantized per `channel`, `tensor` or `group`."""
        shape = tuple(weight.shape)
        if per != "group":
            values = weight.flatten(1) if per == "channel" else weight.reshape(1, -1)
            return cls(values, values.new_full((len(values), 1), values.shape[1]), shape, None)
        assert group_size is not None
        missing = -shape[1] % group_size
        padded = torch.cat([weight, weight.new_zeros(shape[0], missing, *shape[2:])], dim=1) if missing else weight
        grouped = padded.unflatten(1, (-1, group_size))  # [Cout, groups, size, *kernel]
        count = weight.new_full(grouped.shape[:2], grouped[0, 0].numel())
        count[:, -1] -= missing * grouped[0, 0, 0].numel()
        return cls(grouped.flatten(2).flatten(0, 1), count.reshape(-1, 1), shape, group_size)

    def spread(self, params: QParams) -> QParams:
        """Parameters [R, 1] of the rows in a shape that broadcasts to the weight."""
        ones = (1,) * (len(self.shape) - 2)

        def one(value: Tensor) -> Tensor:
            if self.group_size is None:
                return value.reshape(-1, 1, *ones)
            return value.reshape(self.shape[0], -1, *ones).repeat_interleave(self.group_size, dim=1)[:, : self.shape[1]]

        return QParams(one(params.delta), one(params.zero))
