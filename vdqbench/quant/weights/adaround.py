"""AdaRound with block reconstruction: whether each weight is rounded up or down is learned on the output of its block.

Q-Diffusion (arXiv 2302.04304, Sec. 3.2.2); with `temporal` also TFMQ-DM's joint reconstruction of the temporal features (arXiv 2311.16503).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.grids import GridPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.evidence import Evidence
    from vdqbench.quant.format import Format
    from vdqbench.quant.layer import LayerPlan
    from vdqbench.quant.quantizer import QParams, QTensor
    from vdqbench.quant.rows import Rows
    from vdqbench.quant.view import LayerView

PAPER_ITERS = 20000


@dataclass(frozen=True)
class AdaRound(GridPart):
    """Options of AdaRound.

    Args:
        init: how the grid is found: `mse` (p = 2.4, 80 candidates) or `minmax`; it stays as it is.
        iters: of each unit, for each combination of weights that its layers take on over the steps; 20000 in the paper. Fewer are a cut
            budget, which `label_suffix` names.
        batch_moments: calls of the unit in each iteration, drawn with replacement.
        lr: of Adam.
        seed: of the drawing.
        units: `block`: blocks of the model are learned as a whole, layers outside of them by themselves; `layer`: all by themselves.
        temporal: the timestep's MLP and all layers that read its features are one unit, learned on the timesteps alone.
    """

    init: str = "mse"
    iters: int = PAPER_ITERS
    batch_moments: int = 4
    lr: float = 1e-3
    seed: int = 0
    units: str = "block"
    temporal: bool = False

    needs = ("calls",)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.choice("init", ("mse", "minmax"))
        self.choice("units", ("block", "layer"))
        self.require(self.iters >= 1, "iters", "at least 1")
        self.require(self.batch_moments >= 1, "batch_moments", "at least 1")
        self.require(self.lr > 0, "lr", "a positive number")

    @property
    def budgeted(self) -> bool:
        """Whether it learns for less long than in the paper."""
        return self.iters < PAPER_ITERS

    def label_suffix(self) -> str:
        return f"budgeted, {self.iters} iterations" if self.budgeted else ""

    def fit(self, rows: Rows, fmt: Format) -> QParams:
        from vdqbench.quant import ranges

        return ranges.mse(rows.values, fmt) if self.init == "mse" else ranges.minmax(rows.values, fmt)

    def prepare(self, plans: Sequence[LayerPlan], evidence: Evidence | None) -> Callable[[LayerView, int], QTensor]:
        """Learned weights. `quantize` by itself rounds to nearest, which is what searches before the reconstruction see."""
        if evidence is None:
            return self.quantize
        from vdqbench.quant.reconstruction import Reconstruction
        from vdqbench.quant.variants import identity, in_force, unpacked, variant_name, variants

        for plan in plans:
            if plan.site.formats[0] != "int":
                raise Unsupported(
                    f"bits.format={plan.site.formats[0]}: method.weight.grid=adaround rounds whole numbers up or down; "
                    "use bits.format=int or another grid"
                )
        work = Reconstruction(plans, self, evidence)
        weights = [[in_force(plan), [identity(view, bits) for view, bits in variants(plan)]] for plan in plans]
        decides = [self.semantic(), evidence.draw.semantic(), list(evidence.blocks), weights]
        digest = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]

        def remember(unit: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
            return evidence.remember(["adaround", digest, unit], make)

        found = work.run(remember)

        return lambda view, bits: unpacked(found[variant_name(view, bits)], self.format(view, bits), view.device)
