"""Min-max grids: the smallest and the largest weight of a group are its ends.

ViDiT-Q (arXiv 2406.02540) and ASQ/TSQ (arXiv 2502.15077, Eq. 1): delta = (max - min) / (2^b - 1) with 0 included, one grid for each output
channel, found after the transforms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.grids import GridPart

if TYPE_CHECKING:
    from vdqbench.quant.format import Format
    from vdqbench.quant.quantizer import QParams
    from vdqbench.quant.rows import Rows


@dataclass(frozen=True)
class MinMax(GridPart):
    """No options of its own."""

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant.ranges import minmax

        return minmax(rows.values, fmt)
