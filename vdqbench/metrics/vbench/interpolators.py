"""Interpolators of the frame in the middle of two, for motion smoothness."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Interpolator(Protocol):
    """What `motion_smoothness` plugs in; its name becomes part of the score's."""

    name: str

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        """The frames in the middle, uint8 [M, H, W, 3], of frames uint8 [M, H, W, 3]; as in VBench clipped, then cut to integers."""

    def protocol(self) -> dict[str, Any]:
        """What decides the frames: network, hash of its weights, version; never a path or a device."""


class Linear:
    """The mean of both frames, cut to integers: exact where brightness changes evenly, a double exposure where something moves."""

    name = "linear"

    def middle(self, first: Tensor, second: Tensor) -> Tensor:
        return ((first.short() + second.short()) // 2).byte()

    def protocol(self) -> dict[str, Any]:
        return {"interpolator": "linear", "version": 1}
