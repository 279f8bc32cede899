"""A low-rank branch in 16 bits carries what is hard to quantize of a weight, and the rest of it is quantized: SVDQuant.

W' = W diag(s) = U D + R (arXiv 2411.05007, Eq. 3 to 5): y = Q(R) Q(x') + U (D x') with x' the smoothed input, which the branch reads
unquantized. Beyond the paper's one decomposition its code repeats U D <- SVD_r(W' - Q(R)) as long as the output improves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import TransformPart
from vdqbench.quant.transforms.smooth import Identity

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.view import LayerView

EXACT = 1024
"""Up to this many rows or columns the decomposition is LAPACK's; beyond it is found by subspace iteration."""


@dataclass(frozen=True)
class LowRank(TransformPart):
    """Options of the branch. It must be the last of the transforms.

    Args:
        rank: r.
        iterations: most decompositions; 1 is the paper's. It stops at the first that does not lower the error of the layer's
            output on the samples of calibration, with quantized weights and unquantized inputs.
        shared_down: layers of a module that read the same input get one D, from the decomposition of their stacked weights. With
            smoothing, let them share that as well.
    """

    rank: int = 32
    iterations: int = 100
    shared_down: bool = False

    def __post_init__(self) -> None:
        self.require(self.rank >= 1, "rank", "at least 1")
        self.require(self.iterations >= 1, "iterations", "at least 1")

    @property
    def needs(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("calls",) if self.iterations > 1 or self.shared_down else ()

    def fit(self, view: LayerView) -> Branch:
        if not self.needs:
            found = self._decompose([view])
        else:
            from vdqbench.quant.trial import beside, search_key

            evidence, layers = view.required_evidence(), [view]
            if self.shared_down:
                layers = [view if name == view.site.name else beside(view, name) for name in view.group]
            key = search_key(self, view, layers[0].site.name) | {"layers": [layer.site.name for layer in layers]}
            found = evidence.remember(key, lambda: self._decompose(layers))
        return _branch(view, found[f"up.{view.site.name}"], found["down"])

    def _decompose(self, layers: Sequence[LayerView]) -> dict[str, Tensor]:
        """`down` [r, Cin x kernel] and `up.<layer>` [Cout, r], in the precision of the model."""
        import torch

        weights = [layer.weight.flatten(1) for layer in layers]
        stacked, sizes = torch.cat(weights), [len(weight) for weight in weights]
        if self.iterations == 1:
            return _named(layers, *_factors(stacked, self.rank, layers[0].master.dtype), sizes)
        samples = layers[0].samples().values.flatten(1)
        kept, smallest, coded = None, math.inf, torch.zeros_like(stacked)
        for _ in range(self.iterations):
            up, down = _factors(stacked - coded, self.rank, layers[0].master.dtype)
            rest = stacked - up.float() @ down.float()
            rounded = [_rounded(layer, part, down) for layer, part in zip(layers, up.split(sizes), strict=True)]
            if any(weight is None for weight in rounded):  # the weight stays in floating point: nothing is left to improve
                return _named(layers, up, down, sizes)
            coded = torch.cat([weight.flatten(1) for weight in rounded if weight is not None])
            error = float((samples @ (rest - coded).t()).double().square().sum())
            if error >= smallest:
                break
            kept, smallest = (up, down), error
        if kept is None:
            raise Unsupported(f"layer {layers[0].site.name} is not finite once quantized, so that no low-rank branch can be chosen for it")
        return _named(layers, *kept, sizes)

    def branch_macs(self, shape: tuple[int, ...]) -> int:
        return self.rank * (math.prod(shape[1:]) + shape[0])

    def values(self, shape: tuple[int, ...]) -> int:
        return self.ranges * self.rank * (math.prod(shape[1:]) + shape[0])

    @property
    def value_bytes(self) -> int:
        return 2


@dataclass(frozen=True)
class Branch(Identity):
    """What a branch takes over from a weight.

    Attributes:
        up, down: [Cout, r] and [r, Cin, *kernel].
        conv: stride, padding and dilation of a convolution.
    """

    up: Tensor
    down: Tensor
    conv: tuple[Any, ...] = ()

    def weight(self, weight: Tensor) -> Tensor:
        return weight - (self.up.float() @ self.down.float().flatten(1)).view_as(weight)

    def branch(self) -> Callable[[Tensor], Tensor]:
        import torch.nn.functional as F

        if not self.conv:
            return lambda x: F.linear(F.linear(x, self.down), self.up)
        dims = self.down.ndim - 2
        convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return lambda x: convolve(convolve(x, self.down, None, *self.conv), self.up.view(*self.up.shape, *(1,) * dims))


def truncated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(U S, V^T) of the `rank` largest singular values of a matrix, in float64.

    Of a matrix beyond EXACT both ways, by subspace iteration from a fixed start.
    """
    import torch

    weight, rank = weight.double(), min(rank, *weight.shape)
    if min(weight.shape) <= EXACT:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :rank] * s[:rank], v[:rank]
    start = torch.randn(weight.shape[1], 2 * rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis = torch.linalg.qr(weight @ start.to(weight.device)).Q
    for _ in range(8):
        basis = torch.linalg.qr(weight @ (weight.t() @ basis)).Q
    u, s, v = torch.linalg.svd(basis.t() @ weight, full_matrices=False)
    return basis @ u[:, :rank] * s[:rank], v[:rank]


def _factors(weight: Tensor, rank: int, dtype: Any) -> tuple[Tensor, Tensor]:
    up, down = truncated(weight, rank)
    return up.to(dtype), down.to(dtype)


def _named(layers: Sequence[LayerView], up: Tensor, down: Tensor, sizes: Sequence[int]) -> dict[str, Tensor]:
    parts = {f"up.{layer.site.name}": part for layer, part in zip(layers, up.split(list(sizes)), strict=True)}
    return {"down": down, **parts}


def _rounded(layer: LayerView, up: Tensor, down: Tensor) -> Tensor | None:
    """What quantization makes of the rest of a layer's weight."""
    from vdqbench.quant.trial import rounded_weight

    return rounded_weight(layer.through(_branch(layer, up, down)))


def _branch(view: LayerView, up: Tensor, down: Tensor) -> Branch:
    up, down = up.to(view.device), down.to(view.device).view(-1, *view.site.shape[1:])
    if len(view.site.shape) == 2:
        return Branch(up, down)
    module: Any = view.required_evidence().denoiser.get_submodule(view.site.name)
    if module.groups != 1 or module.padding_mode != "zeros":
        raise Unsupported(
            f"layer {view.site.name} is a convolution with groups or with padding {module.padding_mode}, which a low-rank branch does not "
            "support; list it in method.sites.keep_fp"
        )
    return Branch(up, down, (module.stride, module.padding, module.dilation))
