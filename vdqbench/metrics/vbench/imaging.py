"""Imaging quality: MUSIQ trained on SPAQ (VBench 4.1.7), through pyiqa."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import ConfigError
from vdqbench.metrics.backbone import state_hash
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.vbench.dimension import Dimension, feature_key, pick_device
from vdqbench.metrics.vbench.frames import at_most, channels_first

LONGEST = 512
WHERE = "the file musiq_spaq_ckpt-358bb6af.pth of github.com/chaofengc/IQA-PyTorch, or pyiqa to fetch it"


def imaging_quality(frames: Tensor, musiq: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """MUSIQ / 100 of frames uint8 [M, H, W, 3]: [M]; frames longer than 512 pixels are brought to 512, bilinear without smoothing."""
    return musiq(at_most(channels_first(frames, device), LONGEST) / 255).flatten().double().cpu() / 100


class ImagingQuality(Dimension):
    """Imaging quality, the mean over all frames.

    Args:
        weights: `pyiqa` (its own download), or the file `musiq_spaq_ckpt-358bb6af.pth`.
        batch_size: frames at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for the one there is.

    Raises:
        ConfigError: pyiqa is not installed, or there are no weights or such that do not fit.
    """

    def __init__(
        self, weights: str | None = None, batch_size: int = 8, device: str | None = None, scores: Sequence[str] | None = None
    ) -> None:
        super().__init__("imaging_quality", "Imaging quality", None, None, None, scores)
        self._device, self._batch_size = pick_device(device), batch_size
        self._musiq = open_musiq(weights, str(self._device))
        self._sha256 = state_hash(self._musiq.net)

    def values(self, batch: VideoBatch) -> Tensor:
        return batch.features("videos", feature_key(network="musiq-spaq", sha256=self._sha256, version=1), self._embed).mean(dim=1)

    @torch.inference_mode()
    def _embed(self, videos: Tensor) -> Tensor:
        parts = [imaging_quality(part, self._musiq, self._device) for part in videos.flatten(0, 1).split(self._batch_size)]
        return torch.cat(parts).view(videos.shape[:2])

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), "backbone": "musiq-spaq", "sha256": self._sha256, "longest": LONGEST, "frames": "all"}


@lru_cache(maxsize=2)
def open_musiq(weights: str | None, device: str) -> Any:
    """pyiqa's `musiq-spaq` (its plain `musiq` is trained on KonIQ), one copy per process.

    Raises:
        ConfigError: pyiqa is not installed, or there are no weights or such that do not fit.
    """
    key = "metric.vbench_imaging_quality.weights"
    if weights is None:
        raise ConfigError(f"{key}=null would be random ones; expected {WHERE}")
    try:
        import pyiqa
    except ImportError as error:
        raise ConfigError(
            "imaging_quality is MUSIQ of the package pyiqa, which is not installed; pip install pyiqa, or leave it out"
        ) from error
    if weights != "pyiqa":
        metric = pyiqa.create_metric("musiq-spaq", device=torch.device(device), pretrained=False)
        load_exactly(metric.net, read_checkpoint(weights, key, WHERE), key, weights, WHERE)
        return metric
    try:
        return pyiqa.create_metric("musiq-spaq", device=torch.device(device))
    except OSError as error:
        raise ConfigError(f"{key}=pyiqa cannot be fetched ({error}); set it to a local file or run once with a network") from error
