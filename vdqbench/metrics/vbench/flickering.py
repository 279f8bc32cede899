"""Temporal flickering: one minus the mean absolute difference of consecutive frames (VBench 4.1.3); no network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension


def temporal_flickering(videos: Tensor) -> Tensor:
    """(255 - m) / 255 of uint8 videos [N, T, H, W, 3], m the mean absolute difference of consecutive frames: [N] in 0..1.

    VBench takes it on videos of still scenes, of which its own script keeps those with little optical flow; on any other video it
    falls with motion as much as with flicker.

    Raises:
        Unsupported: videos of one frame.
    """
    if videos.shape[1] < 2:
        raise Unsupported(
            "temporal_flickering compares consecutive frames and these videos have one frame; score longer videos or leave it out"
        )
    means = [torch.stack([(b.int() - a.int()).abs().double().mean() for a, b in pairwise(video)]).mean() for video in videos]
    return (255 - torch.stack(means)) / 255


class TemporalFlickering(Dimension):
    """Temporal flickering of all frames; the static filter of VBench, a choice of videos, is not applied.

    Args:
        scores: names of the scores wanted; None for the one there is.
    """

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        super().__init__("temporal_flickering", "Temporal flickering", None, 0.0, 1.0, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        return temporal_flickering(batch.videos)

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "frames": "all", "static_filter": False}
