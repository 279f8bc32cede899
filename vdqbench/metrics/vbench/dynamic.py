"""Dynamic degree: the share of videos in which something moves, by optical flow (VBench 4.1.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension, feature_key
from vdqbench.metrics.vbench.flows import Flow
from vdqbench.metrics.vbench.frames import every
from vdqbench.metrics.vbench.plug import plug

LARGEST, THRESHOLD = 0.05, 6.0


def largest_motion(flow: Tensor) -> Tensor:
    """Mean length in pixels of the 5 % largest vectors of flow [M, 2, H, W], their number rounded down: [M]."""
    lengths = flow.square().sum(dim=1).sqrt().flatten(1)
    return lengths.topk(max(1, int(lengths.shape[1] * LARGEST)), dim=1).values.mean(dim=1)


def pairs_needed(frames: int) -> int:
    """How many pairs of `frames` sampled frames must move: a quarter, by Python's rounding of halves to even."""
    return round(4 * frames / 16)


def is_dynamic(motion: Tensor) -> Tensor:
    """Whether videos move, [N] of 0. and 1., from the largest motion of each pair [N, P] in pixels of a frame whose shorter side is 256.

    Raises:
        Unsupported: so few frames that VBench's rule calls every video dynamic.
    """
    frames = motion.shape[1] + 1
    if frames < 2 or (needed := pairs_needed(frames)) < 1:
        raise Unsupported(
            f"dynamic_degree needs at least 3 sampled frames and these videos have {frames}; score longer videos or leave the score out"
        )
    return ((motion > THRESHOLD).sum(dim=1) >= needed).double()


class DynamicDegree(Dimension):
    """Share of dynamic videos; `dynamic_degree` with RAFT, `dynamic_degree_<flow>` with another flow.

    Args:
        flow: `{_target_: package.module.Class, ...}`, see `vdqbench.metrics.vbench.flows.Flow`.
        fps: frames per second of the videos, of which about 8 are kept.
        batch_size: pairs of frames at once.
        device: handed to a flow that takes it.
        scores: names of the scores wanted; None for the one there is.

    Raises:
        ConfigError: no frame rate, or a flow that cannot be built.
    """

    def __init__(
        self,
        flow: Mapping[str, Any],
        fps: float | None = None,
        batch_size: int = 1,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        if not isinstance(fps, int | float) or not fps > 0:
            raise ConfigError(f"dynamic_degree's fps={fps} must be the videos' frames per second, since about 8 a second are compared")
        self._every, self._batch_size = every(fps), batch_size
        self._flow: Flow = plug(flow, "flow", ("flow",), device=device)
        encoder = None if self._flow.name == "raft" else self._flow.name
        super().__init__("dynamic_degree", "Dynamic degree", encoder, 0.0, 1.0, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        key = feature_key(features="largest motion", every=self._every, version=self.version, by=self._flow.protocol())
        return is_dynamic(batch.features("videos", key, self._motion))

    def _motion(self, videos: Tensor) -> Tensor:
        """Largest motion of each pair, [M, P], in pixels of a frame whose shorter side is 256."""
        kept = videos[:, :: self._every]
        first, second = kept[:, :-1].flatten(0, 1), kept[:, 1:].flatten(0, 1)
        parts = [
            largest_motion(self._flow.flow(a, b)).cpu()
            for a, b in zip(first.split(self._batch_size), second.split(self._batch_size), strict=True)
        ]
        lengths = torch.cat(parts) if len(first) else torch.zeros(0)
        return lengths.double().view(len(videos), -1) * 256 / min(videos.shape[2:4])

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self._flow.protocol(), "version": self.version, "every": self._every, "threshold": THRESHOLD}
