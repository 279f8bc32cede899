"""Smoothing with exponents found by search: s_j = (max |x_j|)^a / (max_i |W_ij|)^b, the first step of SVDQuant (arXiv 2411.05007).

As in the authors' code the candidates (a, b) are (0, 0), (a, 0) and (a, 1 - a) for a = 1/20 .. 19/20; the objective is the output of the
layer, or of the attention for the queries, keys and values that share one s. Their search has the low-rank branch in it; here it
comes after the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.parts import TransformPart
from vdqbench.quant.transforms.smooth import Diagonal, input_bounds, max_of, weight_size

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class SmoothSearch(TransformPart):
    """Options of the search. Layers of a module that read one input share s.

    Args:
        points: a goes in steps of 1 / points; 2 points - 1 candidates.
        floor: smallest max |x_j| and max |W_ij|.
        moments: how many of the drawn moments the search looks at, spread evenly.
        ranges: number of equal parts of the steps with their own s.
    """

    points: int = 20
    floor: float = 1e-5
    moments: int = 1
    ranges: int = 1

    needs = ("min", "max", "calls")

    def __post_init__(self) -> None:
        self.require(self.points >= 1, "points", "at least 1")
        self.require(self.floor > 0, "floor", "a positive number")
        self.require(self.moments >= 1, "moments", "at least 1")

    @property
    def shared(self) -> bool:
        return True

    @property
    def candidates(self) -> list[tuple[float, float]]:
        """(a, b), no smoothing first."""
        steps = [i / self.points for i in range(1, self.points)]
        return [(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1 - a) for a in steps)]

    def fit(self, view: LayerView) -> Diagonal:
        lo, hi = input_bounds(view)
        x = max_of([-lo, hi]).clamp(min=self.floor).to(view.device)
        w = weight_size(view.peer_weights).clamp(min=self.floor)
        return Diagonal(self._scaled(x, w)[int(self.search(view, x, w)["best"])])

    def search(self, view: LayerView, x: Tensor, w: Tensor) -> dict[str, Tensor]:
        """The relative squared `error` that each candidate leaves in the output, and the index of the `best`."""
        from vdqbench.quant.trial import ModuleError, compare, search_key, unit_of

        unit = unit_of(view) if len(view.group) > 1 else view.site.name
        candidates = [Diagonal(s) for s in self._scaled(x, w)]
        return view.required_evidence().remember(
            search_key(self, view, unit), lambda: compare(candidates, ModuleError(view, "layer", self.moments, unit))
        )

    def _scaled(self, x: Tensor, w: Tensor) -> list[Tensor]:
        return [x**a / w**b for a, b in self.candidates]

    def values(self, shape: tuple[int, ...]) -> int:
        return self.ranges * shape[1]
