"""GPTQ: columns of a weight are rounded one after the other, and those not yet rounded make up for the error in the output.

Frantar et al., arXiv 2210.17323. QuaRot (arXiv 2404.00456) uses it on rotated weights: symmetric, block 128, damping 1 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.errors import Unsupported
from vdqbench.quant.format import make
from vdqbench.quant.grids import GridPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.evidence import Evidence
    from vdqbench.quant.format import Format
    from vdqbench.quant.layer import LayerPlan
    from vdqbench.quant.quantizer import QParams, QTensor
    from vdqbench.quant.rows import Rows
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class GPTQ(GridPart):
    """Options of GPTQ.

    Args:
        init: how the grid is found, before anything is rounded: `minmax`, or `mse` (p = 2.4, 80 candidates). Groups have grids of
            the weight as it was; the paper takes them from the weight as updated so far, which does not go with `act_order`.
        block: columns that are updated at once.
        damping: added to the Hessian's diagonal, in parts of its mean.
        act_order: columns with the largest inputs first.
    """

    init: str = "minmax"
    block: int = 128
    damping: float = 0.01
    act_order: bool = False

    needs = ("calls",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choice("init", ("minmax", "mse"))
        self.require(self.block >= 1, "block", "at least 1")
        self.require(self.damping > 0, "damping", "a positive number")

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant import ranges

        return ranges.minmax(rows.values, fmt) if self.init == "minmax" else ranges.mse(rows.values, fmt)

    def quantize(self, view: LayerView, bits: int) -> QTensor:
        from vdqbench.quant.quantizer import QTensor
        from vdqbench.quant.rounding import gptq
        from vdqbench.quant.rows import Rows

        weight, fmt, inputs = view.weight, self.format(view, bits), view.samples().values
        if inputs.shape[1:] != weight.shape[1:]:
            raise Unsupported(
                f"layer {view.site.name} is a grouped convolution, which method.weight.grid=gptq does not support; "
                "list it in method.sites.keep_fp"
            )
        rows = Rows.of(weight, self.per, self.group_size)
        params = rows.spread(self.fit(rows, fmt))
        flat = type(params)(*(value.expand_as(weight).flatten(1) for value in params))
        columns = inputs.flatten(1).double()
        codes = gptq(weight.flatten(1), columns.t() @ columns, flat, fmt, self.block, self.damping, self.act_order)
        return QTensor(codes.view_as(weight), params, fmt)

    def prepare(self, plans: Sequence[LayerPlan], evidence: Evidence | None) -> Callable[[LayerView, int], QTensor]:
        """All weights of all layers, each found once for ever. `quantize` by itself, for searches, keeps nothing.

        Raises:
            Unsupported: weights in a format whose blocks bring their own scales.
        """
        for plan in plans:
            widths = {bits for bits, _ in plan.site.plan(max(plan.steps, 1)) if bits is not None}
            if any(make(plan.site.formats[0], bits).block for bits in widths):
                family = plan.site.formats[0]
                raise Unsupported(
                    f"method.weight.grid=gptq rounds to a grid that it finds beforehand, and bits.format={family} has scales of its own: "
                    "use method.weight.grid=minmax"
                )
        if evidence is None:
            return self.quantize
        from vdqbench.quant.variants import identity, packed, unpacked, variant_name, variants

        keys: dict[str, Any] = {}

        def find(view: LayerView, bits: int) -> dict[str, Tensor]:
            return evidence.remember(keys[variant_name(view, bits)], lambda: packed(self.quantize(view, bits)))

        for view, bits in [variant for plan in plans for variant in variants(plan)]:
            keys[variant_name(view, bits)] = ["gptq", self.semantic(), evidence.draw.semantic(), identity(view, bits)]
            find(view, bits)  # now: the layers that give the samples are exchanged afterwards
        return lambda view, bits: unpacked(find(view, bits), self.format(view, bits), view.device)
