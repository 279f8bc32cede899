"""Features of the timestep from a table: one row for each step of the sampler, in floating point, whatever the input is.

They are a finite set, so that no grid is needed: the strongest simple baseline of QVD's HiDi-TQ. It also undoes what quantized
layers before did to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vdqbench.errors import Unsupported
from vdqbench.quant.parts import Activation, ActivationPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.quantizer import Coded
    from vdqbench.quant.view import LayerView


@dataclass(frozen=True)
class Lookup(ActivationPart):
    """No options. Bits do not matter; the rows are float32."""

    floating = True
    needs = ("calls",)

    def fit(self, views: Sequence[LayerView]) -> Rows:
        from vdqbench.quant.temporal import Features

        view = views[0]
        if view.of_output:
            raise Unsupported("method.activation.temporal.grid=lookup replaces what layers read: use method.activation.temporal.site=post")
        steps, features = view.required_evidence().calls.steps, Features.of(views)
        if any(features.variant):
            raise Unsupported(
                f"the features that layer {view.site.name} reads differ between inputs of one step, so they are not a table: "
                "use another method.activation.temporal.grid"
            )
        if len(features.step) < steps:
            raise Unsupported(
                f"layer {view.site.name}: a table needs all {steps} steps, and method.calibration draws {len(features.step)}: use draw=all"
            )
        return Rows(features.rows)

    def values(self, shape: tuple[int, ...], steps: int) -> int:
        return shape[1] * steps


class Rows(Activation):
    """A row [C] for each step."""

    own_format = True

    def __init__(self, rows: Tensor) -> None:
        self.rows, self.ranges = rows, len(rows)

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        from vdqbench.quant.quantizer import Coded

        row = self.rows[index]  # of the transformed input, so the multiplier is in it
        return lambda x: Coded(row.to(x.device).expand(x.shape).clone(), 1.0)
