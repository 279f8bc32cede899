"""A quantized layer: the only modules that are swapped, and what each of them does at the present step.

y = Q_W(W T^-1) Q_A(T x) + branch(T x) + c + b, with T, Q_W and Q_A chosen by the step, the guidance branch and the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.errors import Unsupported
from vdqbench.quant.format import make
from vdqbench.quant.parts import Activation, ActivationPart, Schedule, Site, Transform
from vdqbench.quant.quantizer import Coded, QParams, QTensor
from vdqbench.quant.view import LayerView


class Moment(NamedTuple):
    """What of the time a layer depends on."""

    weight_bits: int | None
    activation_bits: int | None
    view: int
    range: int
    branch: str
    output_range: int = 0


@dataclass(frozen=True, eq=False)
class LayerPlan:
    """All that a layer does over a trajectory.

    Attributes:
        module: the layer; its weight is the master copy.
        views: its transforms, one view for each range of steps.
        weight: puts a view's weight on a grid of so many bits; None keeps floating point.
        input_key: layers with equal keys quantize equal inputs to equal codes.
        steps: of the trajectory its parameters were found on; 0 if they do not depend on it.
        output: the quantizer of its output, where that is quantized.
        widths: bits of its weight over the trajectory.
    """

    site: Site
    module: nn.Module
    views: Sequence[LayerView]
    weight: Callable[[LayerView, int], QTensor] | None
    activation: Activation | None
    input_key: Hashable
    schedule: Schedule
    clock: StepClock
    steps: int
    output: Activation | None = None
    widths: frozenset[int | None] = frozenset()

    @property
    def fixed(self) -> bool:
        """Whether its weight is the same all along."""
        return len(self.views) == 1 and len(self.widths) == 1

    def moment(self) -> Moment:
        """The present one.

        Raises:
            RuntimeError: the trajectory in progress has another number of steps than the calibrated one.
        """
        clock, activation = self.clock, self.activation
        if self.steps and clock.steps != self.steps:
            raise RuntimeError(
                f"layer {self.site.name} was calibrated on {self.steps} steps, but the sampler in progress takes {clock.steps}"
            )
        weight_bits, activation_bits = self.schedule.bits(self.site)
        if activation_bits is None or (activation is None and self.output is None):
            return Moment(weight_bits, None, clock.index(len(self.views)), 0, "both")
        output_range = clock.index(self.output.ranges) if self.output is not None else 0
        if activation is None:
            return Moment(weight_bits, activation_bits, clock.index(len(self.views)), 0, "both", output_range)
        branch = "both" if activation.branches == 1 else "cond" if clock.layout == "embedded" else clock.branch  # embedded: one branch
        return Moment(weight_bits, activation_bits, clock.index(len(self.views)), clock.index(activation.ranges), branch, output_range)

    def quantized_weight(self, moment: Moment) -> QTensor | None:
        """The weight on its grid; None if it stays in floating point."""
        if self.weight is None or moment.weight_bits is None:
            return None
        view = self.views[moment.view]
        if not view.sections:
            return self.weight(view, moment.weight_bits)
        return _joined([self.weight(view.restricted(section), moment.weight_bits) for section in slices(view.sections)])

    def prologue(self, moment: Moment) -> Prologue:
        """What is done to the input before it is quantized, and how it is quantized."""
        transforms = self.views[moment.view].transforms
        branches = tuple(branch for transform in transforms if (branch := transform.branch()) is not None)
        online = [self._online(transform) for transform in transforms]
        if self.activation is None or moment.activation_bits is None:
            return Prologue(tuple(online), branches, None, self._output_encoder(moment))
        last = online[-1] if online and not branches else None
        multiplier = last.multiplier if isinstance(last, Scale) else None
        if make(self.site.formats[1], moment.activation_bits).block and not self.activation.own_format:
            from vdqbench.quant.blocks import block_encoder

            dim = -1 if len(self.site.shape) == 2 else 1
            encoder = block_encoder(make(self.site.formats[1], moment.activation_bits), dim, multiplier)
        else:
            encoder = self.activation.encoder(moment.activation_bits, moment.range, moment.branch, multiplier)
        steps = tuple(online if multiplier is None else online[:-1])
        return Prologue(steps, branches, encoder, self._output_encoder(moment))

    def _output_encoder(self, moment: Moment) -> Callable[[Tensor], Coded] | None:
        if self.output is None or moment.activation_bits is None:
            return None
        return self.output.encoder(moment.activation_bits, moment.output_range, "both", None)

    def _online(self, transform: Transform) -> Callable[[Tensor], Tensor]:
        diagonal = transform.multiplier()
        return transform.input if diagonal is None else Scale(diagonal.view(-1, *(1,) * (len(self.site.shape) - 2)))


@dataclass(frozen=True)
class Prologue:
    """T without the diagonal that the quantizer does for free, the branches beside the quantized product, and the quantizers.

    `encoder` and `output` are None where input or output stay in floating point.
    """

    online: tuple[Callable[[Tensor], Tensor], ...]
    branches: tuple[Callable[[Tensor], Tensor], ...]
    encoder: Callable[[Tensor], Coded] | None
    output: Callable[[Tensor], Coded] | None

    def transform(self, x: Tensor) -> Tensor:
        for step in self.online:
            x = step(x)
        return x


@dataclass(frozen=True)
class Scale:
    """Multiplies channels; in half precision through float32, so that small s do not overflow on the way."""

    multiplier: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x * self.multiplier).to(x.dtype)


@dataclass(frozen=True)
class Sectioned(Activation):
    """Groups of input channels with quantizers of their own."""

    parts: tuple[Activation, ...]
    sizes: tuple[int, ...]
    dim: int

    @classmethod
    def fit(cls, part: ActivationPart, views: Sequence[LayerView]) -> Activation:
        """The quantizer of a layer: of all its input, or of each section that its transforms make."""
        sizes = views[0].sections
        if not sizes:
            return part.fit(views)
        parts = tuple(part.fit([view.restricted(section) for view in views]) for section in slices(sizes))
        return cls(parts, sizes, -1 if len(views[0].site.shape) == 2 else 1)

    @property
    def ranges(self) -> int:  # type: ignore[override]
        return self.parts[0].ranges

    @property
    def branches(self) -> int:  # type: ignore[override]
        return self.parts[0].branches

    def encoder(self, bits: int, index: int, branch: str, multiplier: Tensor | None) -> Callable[[Tensor], Coded]:
        factors = [None] * len(self.sizes) if multiplier is None else list(multiplier.split(self.sizes))
        encoders = [part.encoder(bits, index, branch, factor) for part, factor in zip(self.parts, factors, strict=True)]

        def encode(x: Tensor) -> Coded:
            pieces = zip(encoders, x.split(self.sizes, dim=self.dim), strict=True)
            coded = [encoder(piece) for encoder, piece in pieces]
            return Coded(torch.cat([one.values * one.delta for one in coded], dim=self.dim), 1.0)

        return encode


def slices(sizes: Sequence[int]) -> list[slice]:
    """Consecutive slices of these sizes."""
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _joined(sections: Sequence[QTensor]) -> QTensor:
    """Quantized sections of the input channels of a weight as one."""

    def spread(values: Tensor, like: Tensor) -> Tensor:
        return values.expand_as(like)

    centred = torch.cat([section.centred for section in sections], dim=1)
    delta = torch.cat([spread(section.params.delta, section.centred) for section in sections], dim=1)
    zero = torch.cat([spread(section.params.zero, section.centred) for section in sections], dim=1)
    return QTensor(centred, QParams(delta, zero), sections[0].fmt)


class _Swapped:
    """A layer that does what its plan says, without gradients. It is exchanged in place: name, parameters and hooks stay."""

    run: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def forward(self, input: Tensor) -> Tensor:  # diffusers calls some layers by this keyword
        return self.run(input)


class QuantLinear(_Swapped, nn.Linear):
    """A quantized nn.Linear."""


class QuantConv1d(_Swapped, nn.Conv1d):
    """A quantized nn.Conv1d."""


class QuantConv2d(_Swapped, nn.Conv2d):
    """A quantized nn.Conv2d."""


class QuantConv3d(_Swapped, nn.Conv3d):
    """A quantized nn.Conv3d."""


QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {kind.__mro__[2]: kind for kind in (QuantLinear, QuantConv1d, QuantConv2d, QuantConv3d)}


def swap(module: Any, run: Callable[[Tensor], Tensor]) -> None:
    """Make a layer quantized.

    Raises:
        Unsupported: it is neither a plain linear layer nor a plain convolution, or its forward was replaced on the instance, which
            would go on hiding the quantized one.
    """
    if "forward" in vars(module):
        raise Unsupported(f"a hook replaces the forward of a {type(module).__name__}, so that it cannot be quantized; put hooks on blocks")
    module.__class__, module.run = quantized_class(module), run


def quantized_class(module: nn.Module) -> type[nn.Module]:
    """The class a layer becomes.

    Raises:
        Unsupported: there is none.
    """
    if type(module) not in QUANTIZED:
        raise Unsupported(
            f"{type(module).__name__} is not a layer that can be quantized: {', '.join(kind.__name__ for kind in QUANTIZED)} are"
        )
    return QUANTIZED[type(module)]


def unswap(module: Any) -> None:
    """Undo `swap`."""
    module.__class__ = module.__class__.__mro__[2]
    del module.run


SPENT = "weights_are_quantized"
"""Attribute of a denoiser whose own weights are gone."""


def spend(denoiser: nn.Module) -> None:
    """Note that quantized weights are about to take the place of a model's own."""
    vars(denoiser)[SPENT] = True


def check_unspent(denoiser: nn.Module) -> None:
    """Raises RuntimeError if a model's own weights are gone."""
    if SPENT in vars(denoiser):
        raise RuntimeError("the weights of this denoiser were replaced by quantized ones; load it again")
