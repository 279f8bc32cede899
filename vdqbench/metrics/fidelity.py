"""Fidelity to the reference video, which has the same prompt and the same noise: PSNR, SSIM, temporal error, CLIP cosine, LPIPS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.metrics.backbone import Backbone, open_backbone
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.metrics.lpips import LPIPS, open_lpips

PSNR_CAP = 100.0
"""PSNR in dB of identical videos, and the most that any video gets, so that means stay finite."""
WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03


def psnr(videos: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio 10 log10(255^2 / MSE) in dB of uint8 videos [N, T, H, W, 3], as [N] in 0..100.

    The mean squared error is taken over the whole video: all frames, pixels and channels. The sum of squares is exact.
    """
    squares = torch.stack(
        [
            sum((a.int() - b.int()).square().sum(dtype=torch.int64) for a, b in zip(v, r, strict=True))
            for v, r in zip(videos, references, strict=True)
        ]
    )
    return (10 * torch.log10(255.0**2 * videos[0].numel() / squares.double())).clamp(max=PSNR_CAP)


def ssim(videos: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of uint8 videos [N, T, H, W, 3], as [N] in -1..1.

    Wang et al., IEEE TIP 13(4), 2004: Gaussian window of 11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, only where the
    window lies inside the frame; computed in float64 on each of R, G and B and averaged, as video diffusion papers report it.

    Raises:
        Unsupported: frames smaller than the window.
    """
    height, width = videos.shape[2:4]
    if min(height, width) < WINDOW:
        raise Unsupported(f"ssim needs frames of at least {WINDOW}x{WINDOW} pixels and these have {height}x{width}; leave the score out")
    return torch.stack([_ssim_video(v, r) for v, r in zip(videos, references, strict=True)])


def _ssim_video(video: Tensor, reference: Tensor) -> Tensor:
    """Mean SSIM of one video [T, H, W, 3], a frame at a time, so that long and large videos fit into memory."""
    c1, c2 = (K1 * 255) ** 2, (K2 * 255) ** 2
    means = []
    for a, b in zip(video, reference, strict=True):
        x, y = (frame.permute(2, 0, 1).double() for frame in (a, b))
        mx, my, xx, yy, xy = _window(torch.stack([x, y, x * x, y * y, x * y]))
        vx, vy, cov = xx - mx * mx, yy - my * my, xy - mx * my
        quality = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        means.append(quality.mean())
    return torch.stack(means).mean()


def _window(maps: Tensor) -> Tensor:
    """Gaussian-weighted local means of maps [..., H, W], where the window fits: [..., H - 10, W - 10]."""
    offsets = torch.arange(WINDOW, dtype=maps.dtype, device=maps.device) - WINDOW // 2
    weight = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weight = weight / weight.sum()
    flat = maps.flatten(0, -3)[:, None]
    flat = F.conv2d(F.conv2d(flat, weight.view(1, 1, -1, 1)), weight.view(1, 1, 1, -1))
    return flat[:, 0].unflatten(0, maps.shape[:-2])


def temporal_error(videos: Tensor, references: Tensor) -> Tensor:
    """Mean |(v[t+1] - v[t]) - (r[t+1] - r[t])| of uint8 videos [N, T, H, W, 3] with pixels scaled to 0..1, as [N] in 0..2.

    It is 0 where everything changes as it does in the reference, whatever stands still: a constant tint costs PSNR and not this;
    flicker costs this even where each frame is good. The sum is exact.

    Raises:
        Unsupported: videos of a single frame have no differences.
    """
    if videos.shape[1] < 2:
        raise Unsupported(
            "temporal_error compares differences of consecutive frames and these videos have one frame; score longer videos or leave it out"
        )
    totals = []
    for video, reference in zip(videos, references, strict=True):
        total, before = 0, None
        for v, r in zip(video, reference, strict=True):
            apart = v.short() - r.short()
            if before is not None:
                total += int((apart - before).abs().sum(dtype=torch.int64))
            before = apart
        totals.append(total / (255 * video[1:].numel()))
    return torch.tensor(totals, dtype=torch.float64)


def clip_cosine(frames: Tensor, references: Tensor) -> Tensor:
    """Mean over frames of the cosine of a frame's features and the reference frame's, both [N, T, D]: [N] in -1..1."""
    return F.cosine_similarity(frames, references, dim=-1).mean(dim=1)


class Fidelity(PerVideo):
    """PSNR, SSIM, temporal error, CLIP cosine and LPIPS to the reference video, on raw frames.

    Args:
        backbone: of `clip_cosine`, see `vdqbench.metrics.backbone.open_backbone`; only opened if that score is wanted.
        lpips: of `lpips`, see `vdqbench.metrics.lpips.open_lpips`; only opened if that score is wanted.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all but LPIPS.

    Raises:
        ConfigError: a backbone that cannot be used, or LPIPS without its weights.
    """

    mode = "paired"
    version = 1
    available = (
        ScoreInfo("psnr", "PSNR (dB)", True, 0.0, PSNR_CAP),
        ScoreInfo("ssim", "SSIM", True, -1.0, 1.0),
        ScoreInfo("temporal_error", "Temporal error", False, 0.0, 2.0),
        ScoreInfo("clip_cosine", "CLIP cosine", True, -1.0, 1.0),
        ScoreInfo("lpips", "LPIPS", False, 0.0, None),
    )
    default = ("psnr", "ssim", "temporal_error", "clip_cosine")
    """The scores without `lpips`, whose weights are not in the package."""

    def __init__(
        self,
        backbone: Mapping[str, Any] | None = None,
        lpips: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        super().__init__(self.default if scores is None else scores)
        self._batch_size = batch_size
        self._backbone: Backbone | None = open_backbone(backbone or {}, device) if self.wants("clip_cosine") else None
        self._lpips: LPIPS | None = open_lpips(lpips or {}, device) if self.wants("lpips") else None

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        assert batch.references is not None
        values = {}
        if self.wants("psnr"):
            values["psnr"] = psnr(batch.videos, batch.references)
        if self.wants("ssim"):
            values["ssim"] = ssim(batch.videos, batch.references)
        if self._backbone is not None:
            frames, references = (self._backbone.features(batch, of, batch_size=self._batch_size) for of in ("videos", "references"))
            values["clip_cosine"] = clip_cosine(frames, references)
        if self.wants("temporal_error"):
            values["temporal_error"] = temporal_error(batch.videos, batch.references)
        if self._lpips is not None:
            values["lpips"] = self._lpips.distance(batch.videos, batch.references, self._batch_size)
        return values

    def protocol(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if self.wants("psnr"):
            own["psnr"] = {"error": "whole video", "peak": 255, "cap": PSNR_CAP}
        if self.wants("ssim"):
            own["ssim"] = {"window": WINDOW, "sigma": SIGMA, "channels": "mean of R, G, B", "border": "valid"}
        if self.wants("temporal_error"):
            own["temporal_error"] = {"pixels": "0..1", "frames": "consecutive"}
        if self._lpips is not None:
            own["lpips"] = self._lpips.protocol()
        return {**super().protocol(), **own, **(self._backbone.protocol() if self._backbone else {})}
