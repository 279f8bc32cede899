"""Simulation: quantize, then multiply in the model's own precision. Exact in what it rounds, silent about speed.

A static input costs three elementwise passes: smoothing and 1 / delta are one precomputed vector, the zero point is in the
clamping bounds, and delta is the factor of the matrix product. Layers in a row that read the same tensor on the same grid
(q, k, v without smoothing) quantize it once.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vdqbench.quant.parts import KernelPart

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.quant.layer import LayerPlan, Moment, Prologue
    from vdqbench.quant.view import LayerView

STORED_LIMIT = 2**30
"""`auto` stores the weights of all ranges up to so many bytes, and makes them anew at each change of range beyond."""


@dataclass(frozen=True)
class Sim(KernelPart):
    """Options of simulation.

    Args:
        weights: what happens to the weights of N ranges. `stored`: quantized once each, N copies in memory. `requantized`:
            one copy, made from the master whenever the range changes (one elementwise pass). `auto`: by their size.
    """

    weights: str = "auto"

    def __post_init__(self) -> None:
        self.choice("weights", ("auto", "stored", "requantized"))

    def storage(self, copies_bytes: int) -> str:
        return self.weights if self.weights != "auto" else "stored" if copies_bytes <= STORED_LIMIT else "requantized"

    def start(self, plans: Sequence[LayerPlan], keep: bool = True) -> Callable[[LayerPlan], Callable[[Tensor], Tensor]]:
        size = sum(len(plan.views) * plan.site.elements * plan.views[0].master.element_size() for plan in plans)
        stored = self.storage(size) == "stored"
        readers, memo = Counter(plan.input_key for plan in plans), Memo()

        def forward(plan: LayerPlan) -> Forward:
            shared = memo if readers[plan.input_key] > 1 else None
            return Forward(plan, stored, shared) if keep else Lean(plan, shared)

        return forward

    def settle(self, forwards: Iterable[Lean]) -> None:
        owners = Counter(id(forward.plan.module.weight) for forward in forwards)
        for forward in forwards:
            if forward.plan.fixed and owners[id(forward.plan.module.weight)] == 1:
                forward.replace()


class Memo:
    """The last quantized input, as long as the same tensor comes again, unchanged."""

    def __init__(self) -> None:
        self.source: Any = lambda: None
        self.tag: Any = None
        self.value: Any = None

    def get(self, x: Tensor, key: Any, make: Callable[[Tensor], Any]) -> Any:
        if x.is_inference():  # has no version: a change in between would go unseen
            return make(x)
        tag = (key, x._version)
        if self.source() is not x or self.tag != tag:
            self.source, self.tag, self.value = weakref.ref(x), tag, make(x)
        return self.value


class Forward:
    """The forward of one layer."""

    def __init__(self, plan: LayerPlan, stored: bool, memo: Memo | None) -> None:
        self.plan, self.stored, self.memo = plan, stored, memo
        self.weights: dict[tuple[int | None, int], tuple[Tensor, Tensor | None]] = {}
        self.prologues: dict[Moment, Prologue] = {}
        self.multiply = _linear if len(plan.site.shape) == 2 else _conv

    def __call__(self, x: Tensor) -> Tensor:
        moment = self.plan.moment()
        if (prologue := self.prologues.get(moment)) is None:
            prologue = self.prologues[moment] = self.plan.prologue(moment)

        def encode(x: Tensor) -> tuple[Tensor, Tensor, float]:
            x = prologue.transform(x)
            return x, *_values(x, prologue)

        if self.memo is None:
            transformed, values, factor = encode(x)
        else:
            transformed, values, factor = self.memo.get(x, (self.plan.input_key, moment[1:]), encode)
        y = self.multiply(self.plan.module, values, *self.parameters(moment), factor)
        for branch in prologue.branches:
            y = y + branch(transformed)
        if prologue.output is None:
            return y
        coded = prologue.output(y)
        return (coded.values * coded.delta).to(y.dtype)

    def parameters(self, moment: Moment) -> tuple[Tensor, Tensor | None]:
        """Weight (dequantized) and bias of the moment, in the master's precision."""
        key = moment.weight_bits, moment.view
        if key not in self.weights:
            if not self.stored:
                self.weights.clear()
            master, view = self.plan.views[0].master, self.plan.views[moment.view]
            codes = self.plan.quantized_weight(moment)
            if codes is None and not view.transforms:
                weight = master.detach()
            else:
                weight = (view.weight if codes is None else codes.dequantize()).to(master.dtype)
            self.weights[key] = weight, self._bias(view)
        return self.weights[key]

    def _bias(self, view: LayerView) -> Tensor | None:
        bias: Any = self.plan.module.bias
        constant = view.constant()
        if constant is None:
            return bias
        return constant.to(view.master.dtype) if bias is None else bias.to(constant.device) + constant.to(bias.dtype)


class Lean(Forward):
    """The forward of one layer of a model that is not restored, without a second copy of its weight.

    A weight that is the same all along takes the place of the layer's own (`replace`); another is made anew at every call.
    """

    def __init__(self, plan: LayerPlan, memo: Memo | None) -> None:
        super().__init__(plan, False, memo)
        self.replaced = False
        self.bias: Tensor | None = None

    def replace(self) -> None:
        """Overwrite the layer's weight by the quantized one; in float32 no more than two copies of it exist meanwhile."""
        import torch

        from vdqbench.quant.layer import Moment

        plan, (width,) = self.plan, self.plan.widths
        weight: Any = plan.module.weight
        self.bias = self._bias(view := plan.views[0])
        codes = plan.quantized_weight(Moment(width, None, 0, 0, "both"))
        with torch.no_grad():
            weight.copy_(view.weight if codes is None else codes.centred.mul_(codes.params.delta))
        self.replaced = True

    def parameters(self, moment: Moment) -> tuple[Tensor, Tensor | None]:
        if self.replaced:
            weight: Any = self.plan.module.weight
            return weight.detach(), self.bias
        made = super().parameters(moment)
        self.weights.clear()
        return made


def _values(x: Tensor, prologue: Prologue) -> tuple[Tensor, float]:
    """What is multiplied with the weight, and a factor of the product.

    In single and double precision, values are codes where delta is one number; in half precision they are dequantized
    first, so that the product sees what a deployed dequantization gives it.
    """
    import torch

    if prologue.encoder is None:
        return x, 1.0
    coded = prologue.encoder(x)
    if isinstance(coded.delta, float) and x.dtype in (torch.float32, torch.float64):
        return coded.values.to(x.dtype), coded.delta
    return coded.values.mul_(coded.delta).to(x.dtype), 1.0


def _linear(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    import torch
    import torch.nn.functional as F

    if factor == 1.0:
        return F.linear(x, weight, bias)
    rows = x.flatten(0, -2)
    if bias is None:
        return torch.mm(rows, weight.t()).mul_(factor).view(*x.shape[:-1], -1)
    return torch.addmm(bias, rows, weight.t(), alpha=factor).view(*x.shape[:-1], -1)


def _conv(module: Any, x: Tensor, weight: Tensor, bias: Tensor | None, factor: float) -> Tensor:
    return module._conv_forward(x if factor == 1.0 else x * factor, weight, bias)
