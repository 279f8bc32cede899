"""Layers quantized on trial, for transforms that are chosen by the error they leave in the output of the module around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vdqbench.quant.kernels.sim import Forward
from vdqbench.quant.layer import LayerPlan, Moment, Sectioned
from vdqbench.quant.parts import Activation, Part, Transform
from vdqbench.quant.schedules.fixed import Constant
from vdqbench.quant.variants import content
from vdqbench.quant.view import LayerView
from vdqbench.replay import Call


def trial(view: LayerView, activation: Activation | None = None) -> Callable[[Tensor], Tensor]:
    """The forward of a layer in the basis of a view, quantized at its site's bits by the parts of the view.

    Args:
        activation: the quantizer of its input, where another layer that reads it has one already.

    An activation part with ranges of its own gets one for all the steps of a view that is restricted to some. A weight part
    that learns over several layers rounds each of them by itself (`WeightPart.quantize`).

    Raises:
        Unsupported: the view has no evidence, or a part cannot quantize it.
    """
    forward = Forward(_plan(view, activation), stored=True, memo=None)

    def run(input: Tensor) -> Tensor:  # diffusers calls some layers by this keyword
        return forward(input)

    return run


def rounded_weight(view: LayerView) -> Tensor | None:
    """The view's weight after quantization at the fewest bits that it has in its steps, float32; None if it is not quantized."""
    steps = view.required_evidence().calls.steps
    first, last = view.window or (0, steps)
    bits = min((weight for weight, _ in view.site.plan(steps)[first:last] if weight is not None), default=None)
    codes = _plan(view).quantized_weight(Moment(bits, None, 0, 0, "both"))
    return None if codes is None else codes.dequantize()


def input_quantizer(view: LayerView) -> Activation | None:
    """How the input of a layer is quantized in the basis of a view; None if it is not."""
    part = view.activation_part
    if part is None or all(bits is None for _, bits in view.site.plan(view.required_evidence().calls.steps)):
        return None
    if view.window is not None and getattr(part, "ranges", 1) > 1:
        part = replace(part, ranges=1)  # type: ignore[call-arg]
    return Sectioned.fit(part, [view])


def _plan(view: LayerView, activation: Activation | None = None) -> LayerPlan:
    evidence, activation = view.required_evidence(), activation or input_quantizer(view)
    module = evidence.denoiser.get_submodule(view.site.name)
    weight = view.weight_part.quantize if view.weight_part is not None else None
    return LayerPlan(view.site, module, (view,), weight, activation, view.site.name, Constant(evidence.clock), evidence.clock, 0)


class ModuleError:
    """Squared error of the output of a module, relative to its square, as a function of the transform of one layer in it.

    Layers of the module that read the same input get the same transform: the module's input is scaled for all of them.

    Args:
        unit: the module; by default the attention or feed-forward module around the layer.
        scope: the other layers of the module are quantized as the recipe quantizes them, without transforms (`module`), or
            stay in floating point (`layer`).
        moments: how many of the drawn moments in the view's steps the error is measured on.
    """

    def __init__(self, view: LayerView, scope: str = "module", moments: int = 1, unit: str | None = None) -> None:
        self.evidence, self.unit = view.required_evidence(), unit or unit_of(view)
        self.calls = self.evidence.module_calls([self.unit], _moments(view, moments))[self.unit]
        self.views = [view if name == view.site.name else beside(view, name) for name in view.group]
        others = [name for name in self.evidence.views if _inside(name, self.unit) and name not in view.group] if scope == "module" else []
        self.others = {name: trial(_same_steps(view, name)) for name in others}

    def __call__(self, transform: Transform) -> float:
        views = [view.through(transform) for view in self.views]
        alike = len({(view.site.activation_bits, view.site.timed, view.site.formats[1]) for view in views}) == 1
        shared = input_quantizer(views[0]) if alike else None
        scaled = {view.site.name: trial(view, shared) for view in views}
        return self.evidence.output_error(self.unit, self.calls, {**self.others, **scaled})


def unit_of(view: LayerView) -> str:
    """The module whose output error a search for a layer, and for those that read the same input, looks at.

    The attention or feed-forward module around them, or, where other layers stand in it as well, the one they belong to.
    """
    unit = view.required_evidence().unit(view.site.name)
    if all(_inside(name, unit) for name in view.group):
        return unit
    return view.site.name.rpartition(".")[0]


def _inside(name: str, unit: str) -> bool:
    return not unit or name == unit or name.startswith(f"{unit}.")


def search_key(part: Part, view: LayerView, unit: str) -> dict[str, Any]:
    """All that decides what a search over a module finds for a layer, beside the model and its calibration; JSON-able."""
    evidence = view.required_evidence()
    inside = [other.site for name, other in evidence.views.items() if _inside(name, unit) or name in view.group]
    return {
        "part": part.semantic(),
        "layers": sorted(view.group),
        "module": unit,
        "steps": list(view.window or ()),
        "sites": [[site.name, site.weight_bits, site.activation_bits, site.timed, site.formats] for site in inside],
        "weight": view.weight_part.semantic() if view.weight_part is not None else None,
        "activation": view.activation_part.semantic() if view.activation_part is not None else None,
        "draw": evidence.draw.semantic(),
        "basis": [content(beside(view, name)) for name in view.group] if view.transforms else None,
    }


def compare(candidates: Sequence[Transform], error: Callable[[Transform], float]) -> dict[str, Tensor]:
    """The `error` of each candidate, float64 [n], and the index of the first `best` one, int64; an error that is not finite is infinite."""
    errors = torch.tensor([error(candidate) for candidate in candidates], dtype=torch.float64)
    errors = torch.where(errors.isfinite(), errors, torch.inf)
    return {"error": errors, "best": (errors == errors.min()).nonzero()[0, 0]}


def _moments(view: LayerView, count: int) -> list[Call]:
    """Denoiser calls of so many of the drawn moments in the view's steps, spread evenly over them."""
    evidence = view.required_evidence()
    first, last = view.window or (0, evidence.calls.steps)
    pairs = sorted({(step, prompt) for prompt, step in evidence.pairs if first <= step < last})
    count = min(count, len(pairs))
    chosen = [pairs[(2 * i + 1) * len(pairs) // (2 * count)] for i in range(count)]
    return [call for step, prompt in chosen for call in evidence.calls.at(prompt, step)]


def _same_steps(view: LayerView, name: str) -> LayerView:
    """Another layer, before any transform, in the steps of a view."""
    evidence = view.required_evidence()
    other = evidence.views[name]
    if view.window is None:
        return other
    width = view.window[1] - view.window[0]
    return other.part_of_steps(view.window[0] // width, evidence.calls.steps // width)


def beside(view: LayerView, name: str) -> LayerView:
    """Another layer that reads the same input, in the steps and the basis of a view."""
    other = _same_steps(view, name)
    for transform in view.transforms:
        other = other.through(transform)
    return other
