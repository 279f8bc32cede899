"""What a model is made of and what recipes cost on it, on paper: from its architecture alone, without weights or memory."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vdqbench.config import Model
from vdqbench.errors import ConfigError
from vdqbench.quant.bops import Operation
from vdqbench.quant.parts import KernelPart, Site
from vdqbench.quant.recipe import Recipe


@dataclass(frozen=True)
class Outline:
    """A denoiser without weights.

    Attributes:
        sites: its layers with a role.
        parameters: all of them.
        operations: of one call, for one video in one guidance branch.
    """

    sites: Sequence[Site]
    parameters: int
    operations: list[Operation]

    def roles(self, recipe: Recipe) -> dict[str, tuple[int, int]]:
        """Number of layers that a recipe quantizes, and of their weight elements, by role, in the order of the model."""
        quantized = recipe.quantized(recipe.assign(self.sites)) if not recipe.is_fp else []
        layers, elements = Counter[str](), Counter[str]()
        for site in quantized:
            layers[site.role] += 1
            elements[site.role] += site.elements
        return {role: (count, elements[role]) for role, count in layers.items()}

    def cost(self, recipe: Recipe, kernel: KernelPart) -> dict[str, Any]:
        """`account` and `bit_operations` of a recipe. Parameters that layers share after calibration are counted for each of them."""
        from vdqbench.quant.accounting import account, bit_operations

        others = self.parameters - sum(site.elements for site in self.sites)
        return {**account(self.sites, others, recipe, kernel), "bops": bit_operations(self.operations, self.sites, recipe)}


def outline(model: Model) -> Outline:
    """The outline of a model whose adapter can be had without weights (`outlined`), on the meta device.

    Raises:
        ConfigError: its architecture is not known, or its adapter is none of those.
    """
    from vdqbench.quant.macs import count
    from vdqbench.quant.quantize import sites_of

    module, name = str(model.adapter).rsplit(".", 1)
    kind = getattr(importlib.import_module(module), name)
    if not hasattr(kind, "outlined"):
        raise ConfigError(f"model={model.name} cannot be had without its weights, which {name} loads")
    adapter = kind.outlined(model)
    denoiser = adapter.denoiser
    parameters = sum(parameter.numel() for parameter in denoiser.parameters())
    return Outline(sites_of(denoiser, adapter.layers()), parameters, count(denoiser, **adapter.example()))


def is_real(model: Model) -> bool:
    """Whether a model is one whose weights come from elsewhere: those are outlined, the packaged ones are small enough to be loaded."""
    return any(asset.where.repository or asset.where.address for asset in model.assets)
