"""SCRI: channels are scaled by s from their largest value and one threshold t, which is searched on the output of a module.

QVD (arXiv 2407.11585, Eq. 14, 15). As printed, s_c = X_c / t with X_c = max |x_c| gives every channel the range t, whatever t is: t is then
one factor for all channels, which cancels in every grid that follows its data, and the search has nothing to choose from. A threshold
matters where it stops the scaling at one side, so that there are three modes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.quant.parts import Site, Transform, TransformPart
from vdqbench.quant.transforms.smooth import NORMED, Diagonal, Identity, concerned, input_bounds, max_of

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView

MODES = ("literal", "shrink", "amplify")


@dataclass(frozen=True)
class Scri(TransformPart):
    """Options of SCRI. All layers of a module that read one input share s; s = 1 for channels that are always 0.

    Args:
        mode: `literal`: s = X_c / t, without a search. `shrink`: s = max(1, X_c / t): channels above t are cut to it.
            `amplify`: s = min(1, X_c / t): channels below t are raised to it, as the paper's text describes.
        points: thresholds tried between the smallest and the largest X_c, both of which are tried as well; their logarithms
            are equally spaced. One end of either clamped mode is no scaling at all.
        max_ratio: of the largest to the smallest s; a wider one ruins the grid of the weight.
        roles: fnmatch patterns on roles or names of the layers it is about; the others stay as they are.
        search_scope: the other layers of the module are quantized as the recipe does (`module`), or not (`layer`), in the search.
        moments: how many of the drawn moments the search looks at, spread evenly.
        ranges: number of equal parts of the steps with their own s.
    """

    mode: str = "amplify"
    points: int = 50
    max_ratio: float = 1e3
    roles: tuple[str, ...] = NORMED
    search_scope: str = "module"
    moments: int = 1
    ranges: int = 1

    needs = ("min", "max", "calls")

    def __post_init__(self) -> None:
        self.choice("mode", MODES)
        self.choice("search_scope", ("module", "layer"))
        self.require(self.points >= 0, "points", "at least 0")
        self.require(self.max_ratio >= 1, "max_ratio", "at least 1")
        self.require(self.moments >= 1, "moments", "at least 1")

    @property
    def shared(self) -> bool:
        return True

    def concerns(self, site: Site) -> bool:
        return any(site.matches(pattern) for pattern in self.roles)

    def fit(self, view: LayerView) -> Transform:
        if not concerned(view, self):
            return Identity()
        lo, hi = input_bounds(view)
        size = max_of([-lo, hi]).to(view.device)
        if not size.any():
            return Identity()
        if self.mode == "literal":
            return self.scaled(size, float(size.max()))
        found = self.search(view, size)
        return self.scaled(size, float(found["t"][found["best"]]))

    def scaled(self, size: Tensor, t: float) -> Diagonal:
        """The transform with threshold t; X [Cin], not all 0."""
        s = size / t
        s = s if self.mode == "literal" else s.clamp(min=1) if self.mode == "shrink" else s.clamp(max=1)
        alive = size > 0
        s = s.clamp(min=float(s[alive].max()) / self.max_ratio)
        return Diagonal(s.where(alive, 1.0))

    def search(self, view: LayerView, size: Tensor) -> dict[str, Tensor]:
        """The thresholds `t`, the relative squared `error` that each leaves in the module's output, and the index of the `best`."""
        import torch

        from vdqbench.quant.trial import ModuleError, compare, search_key, unit_of

        ends = size[size > 0].double().aminmax()
        t = torch.logspace(float(ends.min.log2()), float(ends.max.log2()), self.points + 2, base=2.0, dtype=torch.float64)

        def make() -> dict[str, Tensor]:
            error = ModuleError(view, self.search_scope, self.moments)
            return {"t": t, **compare([self.scaled(size, float(one)) for one in t], error)}

        return view.required_evidence().remember(search_key(self, view, unit_of(view)), make)

    def values(self, shape: tuple[int, ...]) -> int:
        return self.ranges * shape[1]
