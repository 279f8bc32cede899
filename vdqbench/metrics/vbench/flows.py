"""Optical flow for dynamic degree: RAFT, which VBench uses, and the classical method of Horn and Schunck for small frames."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.vbench.dimension import pick_device
from vdqbench.metrics.vbench.frames import channels_first

UPDATES, LEAST = 20, 128
WHERE = "torchvision's file raft_large_C_T_V1-22a6c225.pth, or C_T_V1 to fetch it"


class Flow(Protocol):
    """What `dynamic_degree` plugs in; its name becomes part of the score's, unless it is `raft`."""

    name: str

    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        """Motion in pixels, float [M, 2, H', W'] with x before y, from frames uint8 [M, H, W, 3] to the next ones."""

    def protocol(self) -> dict[str, Any]:
        """What decides the flow: network, hash of its weights, version; never a path or a device."""


class Raft:
    """RAFT (Teed and Deng, ECCV 2020), torchvision's `raft_large` with the original `things` weights, 20 updates.

    Frames are padded to multiples of 8 on both sides by repeating the border, and the flow keeps the padding, as in VBench.

    Args:
        weights: `C_T_V1`, torchvision's port of the original checkpoint (its default weights are another model), or a file of it.
        device: where; None for a GPU if there is one.

    Raises:
        ConfigError: no weights, or weights that cannot be fetched or do not fit.
    """

    name = "raft"

    def __init__(self, weights: str | None = None, device: str | None = None) -> None:
        self._device = pick_device(device)
        self._model, self._sha256 = open_raft(weights, str(self._device))

    @torch.inference_mode()
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (pad8(channels_first(frames, self._device)) / 127.5 - 1 for frames in (first, second))
        if min(a.shape[-2:]) < LEAST:
            height, width = first.shape[1:3]
            raise Unsupported(
                f"RAFT needs frames of at least {LEAST}x{LEAST} pixels and these have {height}x{width}; "
                "use the flow vdqbench.metrics.vbench.flows.HornSchunck or leave dynamic_degree out"
            )
        return self._model(a, b, num_flow_updates=UPDATES)[-1].cpu()

    def protocol(self) -> dict[str, Any]:
        return {"flow": "raft_large", "sha256": self._sha256, "updates": UPDATES}


def pad8(x: Tensor) -> Tensor:
    """[M, 3, H, W] padded to multiples of 8 by repeating the border, the odd row or column at the end."""
    (top, bottom), (left, right) = ((-side % 8 // 2, -side % 8 - -side % 8 // 2) for side in x.shape[-2:])
    return F.pad(x, [left, right, top, bottom], mode="replicate")


@lru_cache(maxsize=2)
def open_raft(weights: str | None, device: str) -> tuple[nn.Module, str]:
    """`raft_large` with these weights and their hash, one copy per process.

    Raises:
        ConfigError: no weights, or weights that cannot be fetched or do not fit.
    """
    from torchvision.models.optical_flow import Raft_Large_Weights, raft_large

    key = "metric.vbench_dynamic_degree.flow.weights"
    if weights is None:
        raise ConfigError(f"{key}=null would be random ones; expected {WHERE}")
    if weights == "C_T_V1":
        try:
            state = Raft_Large_Weights.C_T_V1.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise ConfigError(
                f"{key}=C_T_V1 is not in torch's cache and cannot be fetched ({error}); give a local file, or run once with a network"
            ) from error
    else:
        state = read_checkpoint(weights, key, WHERE)
    model = raft_large(weights=None)
    sha256 = load_exactly(model, state, key, weights, WHERE)
    return model.eval().requires_grad_(False).to(torch.device(device)), sha256


class HornSchunck:
    """The global method of Horn and Schunck (Artificial Intelligence 17, 1981) on red, green and blue together, smoothed, at one scale.

    For motions of up to about two pixels between frames, as in small videos: about a tenth too long at one pixel, a quarter at two.

    Args:
        alpha: weight of smoothness, in grey levels.
        iterations: Jacobi steps.
    """

    name = "horn_schunck"

    def __init__(self, alpha: float = 8.0, iterations: int = 100) -> None:
        if not (alpha > 0 and iterations >= 1):
            raise ConfigError(f"flow alpha={alpha}, iterations={iterations} must be a positive number and at least 1")
        self._alpha, self._iterations = float(alpha), int(iterations)

    @torch.inference_mode()
    def flow(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (_smooth(channels_first(frames, first.device)) for frames in (first, second))
        ix, iy = (_derivative(a, axis) / 2 + _derivative(b, axis) / 2 for axis in (-1, -2))
        it = b - a
        xx, xy, yy, xt, yt = ((p * q).sum(dim=1, keepdim=True) for p, q in ((ix, ix), (ix, iy), (iy, iy), (ix, it), (iy, it)))
        smooth = self._alpha**2
        determinant = (smooth + xx) * (smooth + yy) - xy**2
        u, v = torch.zeros_like(xx), torch.zeros_like(xx)
        for _ in range(self._iterations):
            ubar, vbar = _neighbours(u), _neighbours(v)
            rx, ry = xx * ubar + xy * vbar + xt, xy * ubar + yy * vbar + yt
            u = ubar - ((smooth + yy) * rx - xy * ry) / determinant
            v = vbar - ((smooth + xx) * ry - xy * rx) / determinant
        return torch.cat([u, v], dim=1)

    def protocol(self) -> dict[str, Any]:
        return {"flow": "horn_schunck", "alpha": self._alpha, "iterations": self._iterations, "version": 1}


def _smooth(x: Tensor) -> Tensor:
    """[M, C, H, W] under a binomial window of 5x5."""
    window = (torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device) / 16).expand(x.shape[1], 1, 5)
    x = F.pad(x, [2, 2, 2, 2], mode="replicate")
    return F.conv2d(F.conv2d(x, window[..., None], groups=x.shape[1]), window[:, :, None], groups=x.shape[1])


def _derivative(x: Tensor, axis: int) -> Tensor:
    """Central differences of [M, C, H, W] along an axis."""
    pad = [1, 1, 0, 0] if axis == -1 else [0, 0, 1, 1]
    x = F.pad(x, pad, mode="replicate")
    size = x.shape[axis] - 2
    return (x.narrow(axis, 2, size) - x.narrow(axis, 0, size)) / 2


def _neighbours(x: Tensor) -> Tensor:
    """The average that the method's Laplacian is made of: 1/6 of each side, 1/12 of each corner."""
    window = torch.tensor([[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]], device=x.device) / 12
    return F.conv2d(F.pad(x, [1, 1, 1, 1], mode="replicate"), window.view(1, 1, 3, 3))
