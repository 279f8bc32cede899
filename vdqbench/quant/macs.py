"""Count the multiply-accumulates of a model's forward pass, layer by layer and product by product, without computing it.

The count is taken from the matrix products and convolutions that the pass dispatches, so tokens, strides and calls per pass
need no formula per architecture. On the meta device it needs neither weights nor memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING, Any

from vdqbench.quant.bops import Operation

if TYPE_CHECKING:
    from torch import nn


def count(model: nn.Module, *args: Any, **kwargs: Any) -> list[Operation]:
    """Operations of `model(*args, **kwargs)`, in the order of their first call; calls of one layer are added up.

    Products inside a linear layer or convolution carry its name and kind; all others, those of attention above all, are of kind
    `matmul` and carry the name of the innermost module around them. Model and inputs may lie on any device, meta included.
    """
    import torch
    import torch.nn.functional as F
    from torch import nn
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode

    found: dict[tuple[str, str, int], int] = {}
    path: list[tuple[str, str]] = [("", "matmul")]
    muted = [False]

    def add(macs: int, reduction: int) -> None:
        key = (*path[-1], reduction)
        found[key] = found.get(key, 0) + macs

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            counted = None if muted[0] else COUNTERS.get(str(func.overloadpacket))
            if counted is not None:
                add(*counted(args, result))
            return result

    class Attention(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not F.scaled_dot_product_attention or muted[0]:
                return func(*args, **(kwargs or {}))
            query, key, value = (args[i] if i < len(args) else (kwargs or {})[name] for i, name in enumerate(("query", "key", "value")))
            scores = prod(query.shape[:-1]) * key.shape[-2]
            add(scores * query.shape[-1], query.shape[-1])
            add(scores * value.shape[-1], key.shape[-2])
            muted[0] = True
            try:
                return func(*args, **(kwargs or {}))
            finally:
                muted[0] = False

    def enter(name: str, kind: str) -> Callable[..., None]:
        return lambda *_: path.append((name, kind))

    with ExitStack() as stack:
        for name, module in model.named_modules():
            kind = "linear" if isinstance(module, nn.Linear) else "conv" if isinstance(module, nn.modules.conv._ConvNd) else "matmul"
            for handle in (
                module.register_forward_pre_hook(enter(name, kind)),
                module.register_forward_hook(lambda *_: path.pop() and None, always_call=True),
            ):
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(Products())
        stack.enter_context(Attention())
        model(*args, **kwargs)
    return [Operation(name, kind, macs, reduction) for (name, kind, reduction), macs in found.items()]


def _matrices(first: int) -> Callable[[Any, Any], tuple[int, int]]:
    """Of [..., m, k] times [..., k, n]: MACs and k; `first` is the position of the left factor."""

    def counted(args: Any, result: Any) -> tuple[int, int]:
        left, right = args[first], args[first + 1]
        return prod(left.shape) * right.shape[-1], left.shape[-1]

    return counted


def _convolution(args: Any, result: Any) -> tuple[int, int]:
    """Every output position (for a transposed one, every input position) meets the whole weight of its group once."""
    image, weight, transposed = args[0], args[1], args[6]
    positions = image.shape[0] * prod(image.shape[2:]) if transposed else result.shape[0] * prod(result.shape[2:])
    return prod(weight.shape) * positions, prod(weight.shape[1:])


COUNTERS: dict[str, Callable[[Any, Any], tuple[int, int]]] = {
    "aten.mm": _matrices(0),
    "aten.bmm": _matrices(0),
    "aten.addmm": _matrices(1),
    "aten.baddbmm": _matrices(1),
    "aten.convolution": _convolution,
}
