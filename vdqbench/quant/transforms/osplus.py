"""Outlier Suppression+: channels are shifted to be symmetric around 0, and those beyond a threshold are shrunk to it.

x' = (x - z) / s with z_c = (max_c + min_c) / 2 and s_c = max(1, max|x_c - z_c| / t): Wei et al., arXiv 2304.09145, with W z added to
the bias (one is made for layers without). t goes down from the largest |x - z| in equal steps, at least a hundred of them and
twice as many as that value says, as in the authors' search; the first of the best is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import Site, Transform, TransformPart
from vdqbench.quant.transforms.smooth import NORMED, Diagonal, Identity, concerned, input_bounds

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class OSPlus(TransformPart):
    """Options of OS+. All layers of a module that read one input share z and s.

    The authors stop at t = 1, which leaves inputs whose |x - z| stays below 1 alone; here the smallest channel is the end, so that
    inputs of any size are searched alike.

    Args:
        shift: without it z = 0, which is SCRI's `shrink`.
        points: smallest number of thresholds.
        roles, search_scope, moments, ranges: as for `scri`.
    """

    shift: bool = True
    points: int = 100
    roles: tuple[str, ...] = NORMED
    search_scope: str = "module"
    moments: int = 1
    ranges: int = 1

    needs = ("min", "max", "calls")

    def __post_init__(self) -> None:
        self.choice("search_scope", ("module", "layer"))
        self.require(self.points >= 2, "points", "at least 2")
        self.require(self.moments >= 1, "moments", "at least 1")

    @property
    def shared(self) -> bool:
        return True

    def concerns(self, site: Site) -> bool:
        return any(site.matches(pattern) for pattern in self.roles)

    def fit(self, view: LayerView) -> Transform:
        if not concerned(view, self):
            return Identity()
        lo, hi = (bound.to(view.device) for bound in input_bounds(view))
        z = (lo + hi) / 2 if self.shift else lo.new_zeros(len(lo))
        if self.shift:
            _check_padding(view)
        size = (hi - z).maximum(z - lo)
        if not size.any():  # channels that never change: nothing to shrink
            return self.scaled(view, z, size, 1.0)
        found = self.search(view, z, size)
        return self.scaled(view, z, size, float(found["t"][found["best"]]))

    def scaled(self, view: LayerView, z: Tensor, size: Tensor, t: float) -> Transform:
        """The transform with threshold t; z and max|x - z| [Cin]."""
        s = (size / t).clamp(min=1)
        return Shifted(z, s, len(view.site.shape) - 2) if self.shift else Diagonal(s)

    def search(self, view: LayerView, z: Tensor, size: Tensor) -> dict[str, Tensor]:
        """The thresholds `t`, the relative squared `error` that each leaves in the module's output, and the index of the `best`."""
        import torch

        from vdqbench.quant.trial import ModuleError, compare, search_key, unit_of

        alive = size[size > 0].double()
        t = torch.linspace(float(alive.max()), float(alive.min()), max(self.points, int(alive.max() / 0.5)), dtype=torch.float64)

        def make() -> dict[str, Tensor]:
            error = ModuleError(view, self.search_scope, self.moments)
            return {"t": t, **compare([self.scaled(view, z, size, float(one)) for one in t], error)}

        return view.required_evidence().remember(search_key(self, view, unit_of(view)), make)

    def values(self, shape: tuple[int, ...]) -> int:
        return self.ranges * (shape[1] + (shape[1] + shape[0] if self.shift else 0))


@dataclass(frozen=True)
class Shifted(Transform):
    """T x = (x - z) / s, in float32 at least.

    Attributes:
        z, s: [Cin].
        dims: number of dimensions of an input behind its channels.
    """

    z: Tensor
    s: Tensor
    dims: int

    def input(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * self.dims)
        return ((x - self.z.view(shape)) / self.s.view(shape)).to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        return Diagonal(self.s).weight(weight)

    def constant(self, weight: Tensor) -> Tensor:
        return weight.flatten(2).sum(2) @ self.z if weight.ndim > 2 else weight @ self.z

    def statistics(self, statistics: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        known = {name: statistics[name] for name in ("min", "max") if name in statistics}
        return {name: (value - self.z.to(value.device)) / self.s.to(value.device) for name, value in known.items()}


def _check_padding(view: LayerView) -> None:
    """Raises Unsupported for a convolution that pads its input with zeros, which a shift would have to move as well."""
    module = view.required_evidence().denoiser.get_submodule(view.site.name)
    padding = getattr(module, "padding", 0)
    pads = padding == "same" and any(size > 1 for size in view.site.shape[2:]) if isinstance(padding, (str, int)) else any(padding)
    if pads:
        raise Unsupported(f"layer {view.site.name} pads its input with zeros, which a shift moves: use {OSPlus.key('shift')}=false")
