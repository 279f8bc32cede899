"""Progressive bounded quantization: both ends of the range move inwards by the same amount while the weight error falls.

DVD-Quant (arXiv 2505.18663v1, Sec. 3.2), asymmetric, one grid for each output channel of the rotated weight.
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
class PBQ(GridPart):
    """Args: candidates: ranges tried, from min-max down to 1 / candidates of it; the paper states neither their number nor step."""

    candidates: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.candidates >= 1, "candidates", "at least 1")

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant.ranges import pbq

        return pbq(rows.values, fmt, self.candidates)
