"""`offload: layers`: blocks of a network are on the device only while they run; their weights stay where they were loaded."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def visiting(network: Any, blocks: Iterable[nn.Module], device: torch.device) -> Any:
    """Move a network to a device, but for its blocks, which from now on visit it one after the other; returns the network.

    A block's tensors are copied to the device when it is called and taken back, not copied back, when it is done: weights mapped from
    a file stay mapped.
    """
    blocks = list(blocks)
    apart = {id(tensor) for block in blocks for tensor in _tensors(block)}
    for tensor in _tensors(network):
        if id(tensor) not in apart:
            tensor.data = _moved(tensor.data, device)
    for block in blocks:
        kept: list[tuple[Tensor, Tensor]] = []
        block.register_forward_pre_hook(lambda module, args, kept=kept: _enter(module, kept, device))
        block.register_forward_hook(lambda module, args, result, kept=kept: _leave(kept), always_call=True)
    return network


def _enter(block: nn.Module, kept: list[tuple[Tensor, Tensor]], device: torch.device) -> None:
    for tensor in _tensors(block):
        kept.append((tensor, tensor.data))
        tensor.data = _moved(tensor.data, device)


def _leave(kept: list[tuple[Tensor, Tensor]]) -> None:
    while kept:
        tensor, home = kept.pop()
        tensor.data = home


def _moved(values: Tensor, device: torch.device) -> Tensor:
    return values.to(device)


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(), module.buffers())
