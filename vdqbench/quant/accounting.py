"""What a quantized model stores, computed from shapes and a recipe alone: theoretical sizes, not measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import ceil
from typing import Any

from vdqbench.quant.format import FLOAT_BITS
from vdqbench.quant.parts import KernelPart, Site
from vdqbench.quant.recipe import Recipe

PARAMETER_BYTES = 4
"""Scales, zero points and smoothing vectors are float32 here."""


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
    sites = recipe.assign(layers)
    quantized = [s for s in sites if not recipe.is_fp and any(bits != (None, None) for bits in recipe.schedule.plan(s, recipe.steps))]
    copies = recipe.transforms[-1].ranges if recipe.transforms and not recipe.is_fp else 1
    values = {"weight_params": 0, "activation_params": 0, "smoothing": 0}
    one_copy, masters, shared = 0, 0, set()
    for site in quantized:
        plan = recipe.schedule.plan(site, recipe.steps)
        for bits in {w for w, _ in plan}:
            one_copy += ceil(site.elements * (bits or FLOAT_BITS) / 8)
            if bits is not None and recipe.weight is not None:
                values["weight_params"] += recipe.weight.values(site.shape)
        masters += site.elements * FLOAT_BITS // 8
        if recipe.activation is not None:
            values["activation_params"] += recipe.activation.values() * len({a for _, a in plan if a is not None})
        for part in recipe.transforms:
            group = (part, (source or {}).get(site.name, site.name), site.name.rpartition(".")[0])
            if not part.shared or group not in shared:
                values["smoothing"] += part.values(site.shape[1])
                shared.add(group)
    params = values["weight_params"] * PARAMETER_BYTES
    kept = kernel.storage(copies * element_size * sum(site.elements for site in quantized)) if copies > 1 else None
    further = {None: 0, "stored": (copies - 1) * (one_copy + params), "requantized": masters}[kept]
    names = {site.name for site in quantized}
    kept_fp = sum(site.elements for site in sites if site.name not in names)
    size = {
        "weights": one_copy,
        "weight_params": params,
        "activation_params": values["activation_params"] * PARAMETER_BYTES,
        "smoothing": values["smoothing"] * PARAMETER_BYTES,
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
