"""The quantized weights that a layer takes on over a trajectory: which there are, what names them, and how they are kept.

Parts that look at more than the weight find all of them while the model is still unquantized, and keep them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdqbench.quant.format import Format, make
from vdqbench.quant.layer import LayerPlan, slices
from vdqbench.quant.quantizer import QParams, QTensor
from vdqbench.quant.view import applied

if TYPE_CHECKING:
    from vdqbench.quant.view import LayerView


def in_force(plan: LayerPlan) -> list[tuple[int, int | None]]:
    """Index of the view and bits of the weight at each step."""
    result = []
    for step in range(plan.steps):
        with plan.clock.at(step, plan.steps, "both"):
            result.append((plan.clock.index(len(plan.views)), plan.schedule.bits(plan.site)[0]))
    return result


def pieces(view: LayerView) -> list[LayerView]:
    """A view, or its groups of input channels that are quantized apart."""
    return [view.restricted(section) for section in slices(view.sections)] or [view]


def variants(plan: LayerPlan) -> list[tuple[LayerView, int]]:
    """What each weight that the layer gets from a grid is made of, and its bits; formats with scales of their own need no grid."""
    if plan.weight is None:
        return []
    different = [(index, bits) for index, bits in dict.fromkeys(in_force(plan)) if bits and not make(plan.site.formats[0], bits).block]
    return [(piece, bits) for index, bits in different for piece in pieces(plan.views[index])]


def variant_name(view: LayerView, bits: int) -> str:
    """What tells the quantized weights of a model apart: layer, range of steps, group of input channels, bits."""
    section = "" if view.section is None else f"{view.section.start}-{view.section.stop}"
    window = "" if view.window is None else f"{view.window[0]}-{view.window[1]}"
    return f"{view.site.name}|{window}|{section}|{bits}"


def identity(view: LayerView, bits: int) -> dict[str, Any]:
    """What tells a quantized weight from any other on the same model, calibration and draw, as JSON values."""
    return {"weight": variant_name(view, bits), "format": view.site.formats[0], "content": content(view)}


def content(view: LayerView) -> str:
    """Digest of a weight in its basis: transforms stand in it by what they do to the weight, and to two fixed pseudo-random inputs."""
    digest = hashlib.sha256(_bytes(view.weight))
    if view.transforms:
        probe = torch.randn(2, *view.site.shape[1:], generator=torch.Generator().manual_seed(0)).to(view.device)
        for transform in view.transforms:
            probe = applied(transform, probe)
        digest.update(_bytes(probe))
    return digest.hexdigest()[:32]


def packed(tensor: QTensor) -> dict[str, Tensor]:
    """`codes`, `delta` and `zero`; codes of whole numbers in the smallest type that holds them."""
    return {"codes": tensor.codes.to(_type(tensor.fmt)), "delta": tensor.params.delta, "zero": tensor.params.zero}


def unpacked(kept: Mapping[str, Tensor], fmt: Format, device: torch.device) -> QTensor:
    """What `packed` kept."""
    codes, delta, zero = (kept[name].to(device).float() for name in ("codes", "delta", "zero"))
    return QTensor(codes - zero, QParams(delta, zero), fmt)


def _type(fmt: Format) -> torch.dtype:
    if type(fmt) is not Format:
        return torch.float32
    if fmt.bits > 8:
        return torch.int16
    return torch.int8 if fmt.symmetric else torch.uint8


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().float().cpu().contiguous().numpy().tobytes()
