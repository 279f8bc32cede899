"""Bounded-init grid refinement: the range that PBQ finds, refined by coordinate descent on delta, zero point and codes.

DVD-Quant in its later versions (arXiv 2505.18663); the weight error is all it looks at.
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
class BGR(GridPart):
    """Args: candidates: of the first range, as in `pbq`; iterations: of the refinement at most; the paper draws about 45."""

    candidates: int = 100
    iterations: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.candidates >= 1, "candidates", "at least 1")
        self.require(self.iterations >= 0, "iterations", "0 or more")

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant.ranges import bgr

        return bgr(rows, fmt, self.candidates, self.iterations)
