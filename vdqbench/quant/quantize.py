"""Apply a recipe to a model, in place, and take it off again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vdqbench.calibrate import Calibration
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.models.base import Anatomy
from vdqbench.quant.accounting import account, bit_operations
from vdqbench.quant.bops import Operation
from vdqbench.quant.evidence import Evidence, Remember
from vdqbench.quant.layer import QUANTIZED, LayerPlan, Sectioned, check_unspent, quantized_class, spend, swap, unswap
from vdqbench.quant.parts import Activation, KernelPart, Reuse, Schedule, Site, build, find
from vdqbench.quant.recipe import TEMPORAL, TEMPORAL_SOURCE, Recipe
from vdqbench.quant.view import LayerView, views
from vdqbench.replay import Calls


def quantize(
    denoiser: nn.Module,
    layers: Mapping[str, str],
    recipe: Recipe,
    calibration: Calibration | None,
    clock: StepClock,
    *,
    kernel: Mapping[str, Any] | None = None,
    anatomy: Anatomy | None = None,
    calls: Callable[[], Calls] | None = None,
    remember: Remember | None = None,
    keep: bool = True,
    device: torch.device | str | None = None,
) -> Quantized:
    """Quantize the layers of a model as a recipe says; its parameters stay as they are, unless they need not be kept.

    Args:
        layers: role of each quantizable layer, by module name. Linears and convolutions not among them are left alone
            and reported.
        calibration: statistics of the unquantized model, for recipes that need them.
        clock: says the step and branch of the call in progress.
        kernel: a `kernel` node; the simulation by default.
        anatomy: how the model is built, for parts that work on more than one layer.
        calls: loads the denoiser's calls of calibration, for parts that need more than statistics.
        remember: keeps what such parts find.
        keep: whether the model is needed unquantized afterwards. If not, weights that are the same all along take the place of its
            own, layer by layer, so that there never is a second copy of the model; once restored, it is of no more use.
        device: where the layers compute, if their weights are elsewhere meanwhile.

    Raises:
        ConfigError: the recipe needs a calibration, or one of another number of steps or with other layers.
        Unsupported: parts of the recipe do not work with each other or with a layer.
        RuntimeError: the weights of the model were replaced by quantized ones before.
    """
    check_unspent(denoiser)
    options = dict(kernel or {"name": "sim"})
    executor: KernelPart = build(find("kernels", options.pop("name"), "kernel.name"), options)
    sites, anatomy = sites_of(denoiser, layers), anatomy or Anatomy()
    if recipe.is_fp:
        return Quantized(denoiser, sites, recipe, executor, calibration, clock, {}, None, ())
    _check(recipe, calibration, calls)
    assigned = recipe.assign(sites)
    place = None if device is None else torch.device(device)
    if "calls" in recipe.needs and place is not None and next(denoiser.parameters()).device.type != place.type:
        raise Unsupported(f"method={recipe.name} looks at modules by themselves, which model.offload=layers does not allow: use stages")
    evidence = None
    if calls is not None and "calls" in recipe.needs:
        evidence = Evidence(denoiser, {site.name: site.role for site in assigned}, calls, recipe.draw, clock, remember, anatomy.blocks)
    started: list[Any] = [recipe.schedule.start(denoiser, clock)]
    try:
        plans = _plans(denoiser, recipe.quantized(assigned), recipe, calibration, clock, started[0], anatomy, evidence, place)
        forward = executor.start(plans) if keep else executor.start(plans, keep=False)
        runs = {plan.module: forward(plan) for plan in plans}
        started += [part.start(denoiser, clock, anatomy) for part in recipe.reuse]
        if not keep:
            spend(denoiser)
            executor.settle(runs.values())
    except BaseException:
        for one in started:
            one.close()
        raise
    for module, run in runs.items():
        swap(module, run)
    by_name = {plan.site.name: runs[plan.module] for plan in plans}
    return Quantized(denoiser, sites, recipe, executor, calibration, clock, by_name, started[0], started[1:])


class Quantized:
    """A quantized model; as a context manager it is restored on exit.

    Attributes:
        runs: what each quantized layer computes, by name.
        operations: of a forward pass, if bit operations are to be in the report.
        found: keys of what its parts searched for.
    """

    operations: Sequence[Operation] = ()
    found: Sequence[str] = ()

    def __init__(
        self,
        denoiser: nn.Module,
        sites: list[Site],
        recipe: Recipe,
        kernel: KernelPart,
        calibration: Calibration | None,
        clock: StepClock,
        runs: Mapping[str, Callable[[Tensor], Tensor]],
        schedule: Schedule | None,
        reuse: Sequence[Reuse],
    ) -> None:
        self.denoiser, self.sites, self.recipe, self.kernel = denoiser, sites, recipe, kernel
        self.calibration, self.clock, self.runs, self.schedule, self.reuse = calibration, clock, dict(runs), schedule, list(reuse)

    def trace(self) -> dict[str, Any] | None:
        """What was decided during the last trajectory; None where all is known beforehand.

        Returns:
            chosen: activation bits of the switched layers at each step, or None; computed: whether each step was computed,
            or None; weight_bits, activation_bits: averages over computed steps and layers; bops, if operations are known.
        """
        chosen = self.schedule.chosen() if self.schedule is not None else None
        computed = [all(step) for step in zip(*(one.computed() for one in self.reuse), strict=True)] or None
        if chosen is None and computed is None:
            return None
        weight, activation = self.recipe.average_bits(self.sites, chosen, computed)
        made = {"chosen": chosen, "computed": computed, "weight_bits": weight, "activation_bits": activation}
        return {**made, **self._bops(chosen, computed)}

    def report(self) -> dict[str, Any]:
        """`account` of the model, `bops` if operations are known, `unmatched` (linears and convolutions that have no role and
        stay in floating point), and `notes` that must stand beside every result.
        """
        total = sum(parameter.numel() for parameter in self.denoiser.parameters())
        others = total - sum(site.elements for site in self.sites)
        source = self.calibration.source if self.calibration else None
        kinds, known = tuple(QUANTIZED), {site.name for site in self.sites}
        unmatched = [name for name, module in self.denoiser.named_modules() if isinstance(module, kinds) and name not in known]
        element_size = max((parameter.element_size() for parameter in self.denoiser.parameters()), default=2)
        made = account(self.sites, others, self.recipe, self.kernel, source, element_size)
        return {**made, **self._bops(), "unmatched": unmatched, "notes": self.recipe.notes}

    def _bops(self, chosen: Sequence[int] | None = None, computed: Sequence[bool] | None = None) -> dict[str, Any]:
        return {"bops": bit_operations(self.operations, self.sites, self.recipe, chosen, computed)} if self.operations else {}

    def restore(self) -> None:
        """Give the model its own layers back; a second call does nothing."""
        for name in self.runs:
            unswap(self.denoiser.get_submodule(name))
        for started in (self.schedule, *self.reuse):
            if started is not None:
                started.close()
        self.runs, self.schedule, self.reuse = {}, None, []

    def __enter__(self) -> Quantized:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()


def sites_of(denoiser: nn.Module, layers: Mapping[str, str]) -> list[Site]:
    """The quantizable layers of a model, without bits; parameters may be on the meta device."""
    return [Site(name, role, tuple(denoiser.get_parameter(f"{name}.weight").shape), None, None) for name, role in layers.items()]


def _check(recipe: Recipe, calibration: Calibration | None, calls: Callable[[], Calls] | None) -> None:
    if not recipe.needs_calibration:
        return
    if calibration is None or ("calls" in recipe.needs and calls is None):
        raise ConfigError(f"method={recipe.name} needs a calibration; calibrate the model first")
    if calibration.steps != recipe.steps:
        raise ConfigError(f"sampler.steps={recipe.steps} differs from the {calibration.steps} steps of the calibration; calibrate again")
    if recipe.draw.part_name() != "all":
        for part in recipe.parts:
            ranges = getattr(part, "ranges", 1)
            if ranges > 1 and set(part.needs) - {"calls"}:  # the statistics of drawn moments are in the order of the draw
                raise Unsupported(f"{part.key('ranges')}={ranges} needs statistics of every step: use method.calibration.draw=all")


def _plans(
    denoiser: nn.Module,
    sites: list[Site],
    recipe: Recipe,
    calibration: Calibration | None,
    clock: StepClock,
    schedule: Schedule,
    anatomy: Anatomy,
    evidence: Evidence | None,
    place: torch.device | None = None,
) -> list[LayerPlan]:
    modules = {site.name: denoiser.get_submodule(site.name) for site in sites}
    for site in sites:
        if modules[site.name].__class__ in QUANTIZED.values():
            raise Unsupported(f"layer {site.name} is quantized already; restore the model first")
        quantized_class(modules[site.name])
    static = recipe.needs_calibration
    source = calibration.source if calibration is not None and static else {}
    groups: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        groups.setdefault(_group(site, source), []).append(site.name)
    if any(part.shared for part in recipe.transforms) and max(map(len, groups.values()), default=0) < 2:
        raise Unsupported("method.transform shares parameters between layers that read one tensor, but calibration saw no such layers")
    if recipe.temporal and not any(site.role in TEMPORAL for site in sites):
        roles = " or ".join(TEMPORAL)
        raise Unsupported(f"method.activation.temporal is about layers of the role {roles}, and the recipe quantizes none of this model")

    raw: dict[str, LayerView] = {}
    for site in sites:
        group = groups[_group(site, source)]
        raw[site.name] = LayerView(
            site,
            modules[site.name].weight,  # type: ignore[arg-type]
            tuple(modules[name].weight for name in group),  # type: ignore[misc]
            _drawn(calibration.statistics(site.name), recipe, calibration) if calibration is not None and static else {},
            group=tuple(group),
            evidence=evidence,
            weight_part=recipe.weight,
            activation_part=recipe.activation,
            split=anatomy.splits.get(site.name),
            place=place,
        )
    if evidence is not None:
        evidence.views = raw
    if recipe.temporal and recipe.temporal.site == "pre" and not any(site.role == TEMPORAL_SOURCE for site in sites):
        raise Unsupported(f"method.activation.temporal.site=pre is about the layer {TEMPORAL_SOURCE}, which the recipe does not quantize")

    plans = []
    for site in sites:
        module, layer_views = modules[site.name], views(raw[site.name], recipe.transforms)
        activation, output = _activations(recipe, layer_views)
        input_key: tuple[str, ...] = ("", "") if not static and not recipe.transforms else (source.get(site.name, site.name), "")
        if recipe.transforms:
            input_key = _group(site, source) if all(part.shared for part in recipe.transforms) else (site.name, site.name)
        if recipe.temporal and site.role in TEMPORAL:
            input_key = (*input_key, "temporal")
        quantizer, steps = recipe.weight.quantize if recipe.weight is not None else None, recipe.steps if static else 0
        widths = frozenset(weight for weight, _ in recipe.schedule.plan(site, recipe.steps))
        plans.append(LayerPlan(site, module, layer_views, quantizer, activation, input_key, schedule, clock, steps, output, widths))
    if recipe.weight is None:
        return plans
    prepared = recipe.weight.prepare(plans, evidence)
    return [replace(plan, weight=prepared) for plan in plans]


def _activations(recipe: Recipe, layer_views: list[LayerView]) -> tuple[Activation | None, Activation | None]:
    """The quantizers of a layer's input and of its output."""
    of_input, of_output = recipe.activation_at(layer_views[0].site)
    raw = replace(layer_views[0], transforms=(), recorded={}, window=None, of_output=True)
    return None if of_input is None else Sectioned.fit(of_input, layer_views), None if of_output is None else of_output.fit([raw])


def _drawn(recorded: Mapping[str, Any], recipe: Recipe, calibration: Calibration) -> Mapping[str, Any]:
    """Statistics of the drawn moments alone, as those of one prompt; all of them where every moment is drawn."""
    if recipe.draw.part_name() == "all":
        return recorded
    prompts, steps = zip(*recipe.draw.pairs(calibration.prompts, calibration.steps), strict=True)
    return {name: value[list(prompts), list(steps)].unsqueeze(0) for name, value in recorded.items()}


def _group(site: Site, source: Mapping[str, str]) -> tuple[str, str]:
    """Layers of one module that read the same input."""
    return source.get(site.name, site.name), site.name.rpartition(".")[0]
