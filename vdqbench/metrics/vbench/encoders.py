"""Encoders of videos and texts into one space, for overall consistency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.frames import middle_frames

FRAMES = 8


class Encoder(Protocol):
    """What `overall_consistency` plugs in; its name becomes part of the score's."""

    name: str

    def videos(self, batch: VideoBatch) -> Tensor:
        """Features [N, D] of the videos; VBench's own network sees the middles of 8 equal intervals, `middle_frames(T, 8)`."""

    def texts(self, batch: VideoBatch) -> Tensor:
        """Features [N, D] of the prompts."""

    def protocol(self) -> dict[str, Any]:
        """What decides the features: network, hash of its weights, version; never a path or a device."""


class Clip:
    """A CLIP model, whose frame features are shared with the CLIP metrics: the mean of the unit features of 8 frames.

    mini_clip has a linear temporal pooling of its own, trained for retrieving captions, which sees motion; it is used instead.

    Args:
        backbone: see `vdqbench.metrics.backbone.open_backbone`.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.

    Raises:
        ConfigError: a backbone that cannot be used.
    """

    def __init__(self, backbone: Mapping[str, Any], batch_size: int = 64, device: str | None = None) -> None:
        self._backbone, self._batch_size = open_backbone(backbone, device), batch_size
        self.name = "clip" if self._backbone.heads is None else self._backbone.name

    @torch.inference_mode()
    def videos(self, batch: VideoBatch) -> Tensor:
        features = self._backbone.features(batch, batch_size=self._batch_size)
        last, chosen = features.shape[1] - 1, middle_frames(features.shape[1], FRAMES)
        if self._backbone.heads is None:
            return F.normalize(features[:, chosen], dim=-1).mean(dim=1)
        times = torch.tensor(chosen) * 2.0 / max(last, 1) - 1
        heads = self._backbone.heads
        device = next(heads.parameters()).device
        return heads.video(features[:, chosen].to(device), times.expand(len(features), -1).to(device)).cpu()

    def texts(self, batch: VideoBatch) -> Tensor:
        return self._backbone.captions(batch)

    def protocol(self) -> dict[str, Any]:
        pooling = "mean" if self._backbone.heads is None else "temporal"
        return {**self._backbone.protocol(), "pooling": pooling, "frames": FRAMES}
