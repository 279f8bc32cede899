"""Motion smoothness: how well every second frame is foreseen from its two neighbours (VBench 4.1.4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension, feature_key
from vdqbench.metrics.vbench.interpolators import Interpolator
from vdqbench.metrics.vbench.plug import plug


def motion_smoothness(videos: Tensor, middle: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(255 - v) / 255 of uint8 videos [N, T, H, W, 3], v the mean absolute error of the odd frames foreseen by `middle`: [N] in 0..1.

    Odd frames that lie between two even ones count, so the last frame of an even number does not.

    Raises:
        Unsupported: fewer than 3 frames.
    """
    if videos.shape[1] < 3:
        raise Unsupported(
            f"motion_smoothness foresees frames from their neighbours and these have {videos.shape[1]}; score videos of 3 frames or more"
        )
    errors = []
    for video in videos:
        even = video[::2]
        between = video[1::2][: len(even) - 1]
        errors.append((middle(even[:-1], even[1:]).int() - between.int()).abs().double().mean())
    return (255 - torch.stack(errors)) / 255


class MotionSmoothness(Dimension):
    """Motion smoothness by an interpolator that is plugged in, since VBench's own, AMT-S, is in no package.

    Args:
        interpolator: `{_target_: package.module.Class, ...}`, see `vdqbench.metrics.vbench.interpolators.Interpolator`.
        batch_size, device: handed to an interpolator that takes them.
        scores: names of the scores wanted; None for the one there is, `motion_smoothness_<interpolator>`.

    Raises:
        ConfigError: the interpolator cannot be built.
    """

    def __init__(
        self, interpolator: Mapping[str, Any], batch_size: int = 1, device: str | None = None, scores: Sequence[str] | None = None
    ) -> None:
        self._interpolator: Interpolator = plug(interpolator, "interpolator", ("middle",), batch_size=batch_size, device=device)
        super().__init__("motion_smoothness", "Motion smoothness", self._interpolator.name, 0.0, 1.0, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        key = feature_key(score="motion_smoothness", version=self.version, by=self._interpolator.protocol())
        return batch.features("videos", key, lambda videos: motion_smoothness(videos, self._interpolator.middle))

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self._interpolator.protocol(), "version": self.version, "frames": "odd"}
