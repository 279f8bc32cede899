"""What a quantized model stores, computed from shapes and a recipe alone: theoretical sizes, not measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import ceil, prod
from typing import Any

from vdqbench.quant.bops import Operation, total_bops
from vdqbench.quant.format import FLOAT_BITS, Format, make
from vdqbench.quant.parts import KernelPart, Site, WeightPart
from vdqbench.quant.recipe import Recipe

PARAMETER_BYTES = 4
"""Scales and zero points are float32 here."""


def account(
    layers: Iterable[Site], others: int, recipe: Recipe, kernel: KernelPart, source: Mapping[str, str] | None = None, element_size: int = 2
) -> dict[str, Any]:
    """The report of a quantized model.

    A smoothing vector for each of N ranges makes N quantized weights of the same layer. Stored, they take N times the space;
    requantized, the 16-bit master copy must be kept beside the one in use. `bytes` says which, and adds up to the whole.

    Args:
        layers: the quantizable layers.
        others: number of parameters of the model outside of them.
        element_size: bytes of an element of the weights as loaded, on which the kernel decides how it keeps copies.
        source: layers that read the same input, by the first of them; needed where transforms are shared.

    Returns:
        layers, quantized_layers, kept_fp (names), weight_elements (of all layers), weight_bits and activation_bits (averages
        over layers, weighted by weight elements, and over steps), copies (of a transformed weight), copies_kept (`stored` or
        `requantized`), values (numbers stored beside the codes) and bytes, by component.
    """
    layers = list(layers)
    sites = recipe.assign(layers)
    others += sum(site.elements for site in layers) - sum(site.elements for site in sites)
    quantized = [] if recipe.is_fp else recipe.quantized(sites)
    copies = recipe.copies
    values = {"weight_params": 0, "activation_params": 0, "transforms": 0}
    one_copy, masters = 0, 0
    vectors: dict[Any, int] = {}
    for site in quantized:
        plan = recipe.schedule.plan(site, recipe.steps)
        for bits in {w for w, _ in plan}:
            stored = FLOAT_BITS if bits is None else make(site.formats[0], bits).stored_bits
            one_copy += ceil(site.elements * stored / 8)
            if bits is not None and recipe.weight is not None:
                values["weight_params"] += _grid_values(recipe.weight, make(site.formats[0], bits), site.shape)
        masters += site.elements * FLOAT_BITS // 8
        widths = {a for _, a in plan if a is not None and not make(site.formats[1], a).block}
        for activation in recipe.activation_at(site):
            if activation is not None:
                values["activation_params"] += activation.values(site.shape, recipe.steps) * len(widths)
        for part in recipe.transforms:
            if part.concerns(site):
                reader = (source or {}).get(site.name, site.name) if part.shared else site.name
                vectors[part, reader, site.name.rpartition(".")[0]] = part.values(site.shape)
    values["transforms"] = sum(vectors.values())
    transform_bytes = sum(count * part.value_bytes for (part, *_), count in vectors.items())
    params = values["weight_params"] * PARAMETER_BYTES
    kept = kernel.storage(copies * element_size * sum(site.elements for site in quantized)) if copies > 1 else None
    further = {None: 0, "stored": (copies - 1) * (one_copy + params), "requantized": masters}[kept]
    names = {site.name for site in quantized}
    kept_fp = sum(site.elements for site in sites if site.name not in names)
    size = {
        "weights": one_copy,
        "weight_params": params,
        "activation_params": values["activation_params"] * PARAMETER_BYTES,
        "transforms": transform_bytes,
        "copies": further,
        "kept_fp": (kept_fp + others) * FLOAT_BITS // 8,
    }
    weight_bits, activation_bits = recipe.average_bits(sites)
    values["weight_params"] *= copies
    return {
        "layers": len(sites),
        "quantized_layers": len(quantized),
        "kept_fp": [site.name for site in sites if site.name not in names],
        "weight_elements": sum(site.elements for site in sites),
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "copies": copies,
        "copies_kept": kept,
        "values": values,
        "bytes": {**size, "total": sum(size.values())},
    }


def _grid_values(part: WeightPart, fmt: Format, shape: tuple[int, ...]) -> int:
    """How many numbers of 32 bits are stored beside the codes of a weight; the scales of blocks count as bits of their elements."""
    if fmt.block:
        return int(fmt.of_tensor)
    if fmt.symmetric and getattr(part, "symmetric", True) is False:  # a format without zero points
        part = replace(part, symmetric=True)  # type: ignore[call-arg]
    return part.values(shape)


def bit_operations(
    operations: Sequence[Operation],
    layers: Iterable[Site],
    recipe: Recipe,
    chosen: Sequence[int] | None = None,
    computed: Sequence[bool] | None = None,
) -> dict[str, Any]:
    """Bit operations of one forward pass of one video in one guidance branch, averaged over the steps of a trajectory.

    BOPs = MACs (w a + w + a), what stays in floating point at 16 bits; products of activations (attention) and low-rank branches do
    so always. A step that is not computed costs nothing. Smoothing, rotation and the search for dynamic ranges are not counted.

    Args:
        operations: of such a pass, see `vdqbench.quant.macs.count`.
        chosen, computed: what was decided on the way, see `Recipe.average_bits`.

    Returns:
        linear, conv, matmul and total, and the formula.
    """
    sites = [] if recipe.is_fp else recipe.assign(layers)
    plans = {site.name: recipe.plan(site, chosen) for site in sites}
    branches = _branches(operations, sites, recipe)
    full, sums, priced = float(FLOAT_BITS), dict.fromkeys(("linear", "conv", "matmul", "total"), 0.0), dict[Any, dict[str, float]]()
    for step in range(recipe.steps):
        if computed is not None and not computed[step]:
            continue
        bits = {name: (float(plan[step][0] or full), float(plan[step][1] or full)) for name, plan in plans.items()}
        key = tuple(bits.values())
        if key not in priced:
            priced[key] = total_bops([*operations, *branches], bits, (full, full), (full, full))
        sums = {name: sums[name] + priced[key][name] for name in sums}
    return {**{name: value / recipe.steps for name, value in sums.items()}, "formula": "uniq_nolog", "float_bits": FLOAT_BITS}


def _branches(operations: Sequence[Operation], sites: Iterable[Site], recipe: Recipe) -> list[Operation]:
    """What the branches of transforms compute beside the quantized layers."""
    shapes = {site.name: site.shape for site in recipe.quantized(sites)}
    extra = {name: sum(part.branch_macs(shape) for part in recipe.transforms) for name, shape in shapes.items()}
    return [
        Operation(f"{one.name}.branch", one.kind, one.macs // prod(shapes[one.name]) * extra[one.name], one.reduction)
        for one in operations
        if extra.get(one.name)
    ]
