"""Weights and videos made by formulas, so that published networks and ours can be run on the same ones without any file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn


def filled(network: nn.Module, gain: float = 2.0) -> nn.Module:
    """The network in evaluation mode with scattered weights, whose variance is gain / fan-in; they depend on names and places only."""
    state = {}
    for name, value in network.state_dict().items():
        seed = sum((i + 1) * ord(letter) for i, letter in enumerate(name)) % 9973
        k = torch.arange(value.numel(), dtype=torch.float64)
        u = torch.frac((torch.sin(k * 12.9898 + seed * 78.233) * 43758.5453).abs()) * 2 - 1
        if name.endswith("num_batches_tracked"):
            u = value
        elif name.endswith("running_var"):
            u = 1 + 0.5 * u
        elif value.ndim >= 2:
            u = u * (3 * gain / (value.numel() / value.shape[0])) ** 0.5
        else:
            u = 1 + 0.2 * u if name.endswith("weight") else 0.1 * u
        state[name] = u.view(value.shape).to(value.dtype)
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)


def movie(count: int, frames: int, height: int, width: int) -> Tensor:
    """Waves that travel over a fine pattern, uint8 [count, frames, height, width, 3]."""
    n, t, y, x, c = np.meshgrid(*(np.arange(size) for size in (count, frames, height, width, 3)), indexing="ij")
    waves = 60 * np.sin(0.35 * x * (1 + 0.3 * c) + 0.5 * t + n) + 50 * np.cos(0.23 * y - 0.4 * t * (n + 1) + c)
    return torch.from_numpy(np.clip(np.rint(127.5 + waves + (x * 7 + y * 13 + t * 5 + c * 3 + n) % 17), 0, 255).astype(np.uint8))


def layout(state: Mapping[str, Tensor]) -> tuple[str, int]:
    """SHA-256 over names and shapes in order of name, and their number, without the counters of batch normalisation."""
    lines = [f"{name} {list(value.shape)}" for name, value in sorted(state.items()) if not name.endswith("num_batches_tracked")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), len(lines)
