"""Min-max grids: the smallest and the largest weight of a group are its ends.

ViDiT-Q (arXiv 2406.02540) and ASQ/TSQ (arXiv 2502.15077, Eq. 1): delta = (max - min) / (2^b - 1) with 0 included, one grid for each output
channel, found after the transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.format import Format, Granularity, PerChannel, PerTensor
from vdqbench.quant.parts import WeightPart

if TYPE_CHECKING:
    from vdqbench.quant.quantizer import QTensor
    from vdqbench.quant.view import LayerView

GRANULARITIES: dict[str, Granularity] = {"channel": PerChannel(0), "tensor": PerTensor()}


@dataclass(frozen=True)
class MinMax(WeightPart):
    """Args: per: `channel` (output channels) or `tensor`; symmetric: grid without zero point."""

    per: str = "channel"
    symmetric: bool = False

    def __post_init__(self) -> None:
        self.choice("per", GRANULARITIES)

    def quantize(self, view: LayerView, bits: int) -> QTensor:
        from vdqbench.quant.quantizer import QTensor, centred_codes, choose_qparams

        weight, fmt = view.weight, Format(bits, self.symmetric)
        params = choose_qparams(*GRANULARITIES[self.per].bounds(weight), fmt)
        return QTensor(centred_codes(weight, params, fmt), params, fmt)

    def values(self, shape: tuple[int, ...]) -> int:
        return GRANULARITIES[self.per].groups(shape) * (1 if self.symmetric else 2)
