"""What all grids of weights have in common: which weights share a scale, and rounding to nearest on it. Free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.format import Format, make
from vdqbench.quant.parts import WeightPart

if TYPE_CHECKING:
    from vdqbench.quant.quantizer import QParams, QTensor
    from vdqbench.quant.rows import Rows
    from vdqbench.quant.view import LayerView

PER = ("channel", "tensor", "group")


@dataclass(frozen=True)
class GridPart(WeightPart):
    """Options of every grid.

    Args:
        per: which weights share delta and zero point: those of an output `channel`, of the whole `tensor`, or of a `group` of
            neighbouring input channels of one output channel (with all of the kernel of a convolution).
        group_size: input channels in a group; the last group has what is left. Given if and only if `per` is `group`.
        symmetric: grid without zero point.
    """

    per: str = "channel"
    group_size: int | None = None
    symmetric: bool = False

    def __post_init__(self) -> None:
        self.choice("per", PER)
        if self.per == "group":
            self.require(self.group_size is not None and self.group_size >= 1, "group_size", "at least 1 with per=group")
        else:
            self.require(self.group_size is None, "group_size", f"null with per={self.per}; it is the size of the groups of per=group")

    def semantic(self) -> dict[str, Any]:
        options = super().semantic()
        if self.group_size is None:
            del options["group_size"]
        return options

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        """Delta and zero point [R, 1] of rows of weights that share them."""
        raise NotImplementedError

    def format(self, view: LayerView, bits: int) -> Format:
        """The number format of a layer's codes."""
        return make(view.site.formats[0], bits, self.symmetric)

    def quantize(self, view: LayerView, bits: int) -> QTensor:
        """The weight rounded to the nearest point of its grid; formats with blocks bring their own scales."""
        from vdqbench.quant.blocks import quantize_blocks
        from vdqbench.quant.quantizer import QTensor, centred_codes
        from vdqbench.quant.rows import Rows

        weight, fmt = view.weight, self.format(view, bits)
        if fmt.block:
            return quantize_blocks(weight, fmt, dim=1)
        rows = Rows.of(weight, self.per, self.group_size)
        params = rows.spread(self.fit(rows, fmt))
        return QTensor(centred_codes(weight, params, fmt), params, fmt)

    def values(self, shape: tuple[int, ...]) -> int:
        scales = {"tensor": 1, "channel": shape[0], "group": shape[0] * -(-shape[1] // (self.group_size or 1))}[self.per]
        return scales * (1 if self.symmetric else 2)
