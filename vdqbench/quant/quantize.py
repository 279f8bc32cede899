"""Apply a recipe to a model, in place, and take it off again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from torch import nn

from vdqbench.calibrate import Calibration
from vdqbench.clock import StepClock
from vdqbench.errors import ConfigError, Unsupported
from vdqbench.quant.accounting import account
from vdqbench.quant.layer import QUANTIZED, LayerPlan, quantized_class, swap, unswap
from vdqbench.quant.parts import KernelPart, Schedule, Site, build, find
from vdqbench.quant.recipe import Recipe
from vdqbench.quant.view import LayerView, views


def quantize(
    denoiser: nn.Module,
    layers: Mapping[str, str],
    recipe: Recipe,
    calibration: Calibration | None,
    clock: StepClock,
    *,
    kernel: Mapping[str, Any] | None = None,
) -> Quantized:
    """Quantize the layers of a model as a recipe says; its parameters stay as they are.

    Args:
        layers: role of each quantizable layer, by module name. Linears and convolutions not among them are left alone
            and reported.
        calibration: statistics of the unquantized model, for recipes that need them.
        clock: says the step and branch of the call in progress.
        kernel: a `kernel` node; the simulation by default.

    Raises:
        ConfigError: the recipe needs a calibration, or one of another number of steps or with other layers.
        Unsupported: parts of the recipe do not work with each other or with a layer.
    """
    options = dict(kernel or {"name": "sim"})
    executor: KernelPart = build(find("kernels", options.pop("name"), "kernel.name"), options)
    sites = sites_of(denoiser, layers)
    if recipe.is_fp:
        return Quantized(denoiser, sites, recipe, executor, calibration, {}, None)
    _check(recipe, calibration)
    schedule = recipe.schedule.start(denoiser, clock)
    try:
        assigned = [s for s in recipe.assign(sites) if any(bits != (None, None) for bits in recipe.schedule.plan(s, recipe.steps))]
        plans = _plans(denoiser, assigned, recipe, calibration, clock, schedule)
        forward = executor.start(plans)
        runs = {plan.module: forward(plan) for plan in plans}
    except BaseException:
        schedule.close()
        raise
    for module, run in runs.items():
        swap(module, run)
    return Quantized(denoiser, sites, recipe, executor, calibration, runs, schedule)


class Quantized:
    """A quantized model; as a context manager it is restored on exit."""

    def __init__(
        self,
        denoiser: nn.Module,
        sites: list[Site],
        recipe: Recipe,
        kernel: KernelPart,
        calibration: Calibration | None,
        modules: Iterable[nn.Module],
        schedule: Schedule | None,
    ) -> None:
        self.denoiser, self.sites, self.recipe, self.kernel = denoiser, sites, recipe, kernel
        self.calibration, self.modules, self.schedule = calibration, list(modules), schedule

    def report(self) -> dict[str, Any]:
        """`account` of the model, and `unmatched`: linears and convolutions that have no role and stay in floating point."""
        total = sum(parameter.numel() for parameter in self.denoiser.parameters())
        others = total - sum(site.elements for site in self.sites)
        source = self.calibration.source if self.calibration else None
        kinds, known = tuple(QUANTIZED), {site.name for site in self.sites}
        unmatched = [name for name, module in self.denoiser.named_modules() if isinstance(module, kinds) and name not in known]
        element_size = max((parameter.element_size() for parameter in self.denoiser.parameters()), default=2)
        return {**account(self.sites, others, self.recipe, self.kernel, source, element_size), "unmatched": unmatched}

    def restore(self) -> None:
        """Give the model its own layers back; a second call does nothing."""
        for module in self.modules:
            unswap(module)
        if self.schedule is not None:
            self.schedule.close()
        self.modules, self.schedule = [], None

    def __enter__(self) -> Quantized:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.restore()


def sites_of(denoiser: nn.Module, layers: Mapping[str, str]) -> list[Site]:
    """The quantizable layers of a model, without bits; parameters may be on the meta device."""
    return [Site(name, role, tuple(denoiser.get_parameter(f"{name}.weight").shape), None, None) for name, role in layers.items()]


def _check(recipe: Recipe, calibration: Calibration | None) -> None:
    if not recipe.needs_calibration:
        return
    if calibration is None:
        raise ConfigError(f"method={recipe.name} needs a calibration; calibrate the model first")
    if calibration.steps != recipe.steps:
        raise ConfigError(f"sampler.steps={recipe.steps} differs from the {calibration.steps} steps of the calibration; calibrate again")


def _plans(
    denoiser: nn.Module, sites: list[Site], recipe: Recipe, calibration: Calibration | None, clock: StepClock, schedule: Schedule
) -> list[LayerPlan]:
    modules = {site.name: denoiser.get_submodule(site.name) for site in sites}
    for site in sites:
        if modules[site.name].__class__ in QUANTIZED.values():
            raise Unsupported(f"layer {site.name} is quantized already; restore the model first")
        quantized_class(modules[site.name])
    static = any(part.needs for part in recipe.parts)
    source = calibration.source if calibration is not None and static else {}
    groups: dict[tuple[str, str], list[str]] = {}
    for site in sites:
        groups.setdefault(_group(site, source), []).append(site.name)
    if any(part.shared for part in recipe.transforms) and max(map(len, groups.values()), default=0) < 2:
        raise Unsupported("method.transform shares parameters between layers that read one tensor, but calibration saw no such layers")

    plans = []
    for site in sites:
        module = modules[site.name]
        recorded = calibration.statistics(site.name) if calibration is not None and static else {}
        peers = tuple(modules[name].weight for name in groups[_group(site, source)])
        layer_views = views(LayerView(site, module.weight, peers, recorded), recipe.transforms)  # type: ignore[arg-type]
        activation = recipe.activation.fit(layer_views) if recipe.activation is not None and recipe.activation in recipe.parts else None
        input_key: tuple[str, ...] = ("", "") if not static and not recipe.transforms else (source.get(site.name, site.name), "")
        if recipe.transforms:
            input_key = _group(site, source) if all(part.shared for part in recipe.transforms) else (site.name, site.name)
        steps = recipe.steps if static else 0
        plans.append(LayerPlan(site, module, layer_views, recipe.weight, activation, input_key, schedule, clock, steps))
    return plans


def _group(site: Site, source: Mapping[str, str]) -> tuple[str, str]:
    """Layers of one module that read the same input."""
    return source.get(site.name, site.name), site.name.rpartition(".")[0]
