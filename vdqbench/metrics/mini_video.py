"""mini_video, a small 3-D convolutional network of shapes videos, and the distances between sets of videos that stand on it.

It is trained to name colour, shape, background and motion of a clip (`experiments/minis/train_video.py`), on clean videos only, so
that its features move away from those of clean videos when anything damages them. It is to the shapes videos what I3D is to
Kinetics, and its numbers are on a scale of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import ScoreInfo
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.detector import Detector, torch_device
from vdqbench.metrics.frechet import Distance, SetDistance
from vdqbench.metrics.resnet3d import segmented
from vdqbench.shapes import ATTRIBUTES

WEIGHTS = Path(__file__).resolve().parents[1] / "models" / "weights" / "mini_video" / "mini_video.safetensors"
SEGMENT = 4
"""Frames of a segment of mini_fid_vid: too few to see much of a motion, as 16 frames are of a film."""

STAGES = ((32, 1, 2), (48, 2, 2), (48, 1, 1), (64, 2, 2), (64, 1, 1))
"""Channels, stride in time and stride in space of each 3x3x3 convolution."""
DIM = 64


class MiniVideoNet(nn.Module):
    """Five 3x3x3 convolutions with batch normalisation and ReLU, averaged over time and space, and one linear head per attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        inputs = 3
        for channels, time, space in STAGES:
            self.convs.append(nn.Conv3d(inputs, channels, 3, (time, space, space), padding=1, bias=False))
            self.norms.append(nn.BatchNorm3d(channels))
            inputs = channels
        self.heads = nn.ModuleDict({name: nn.Linear(DIM, len(values)) for name, values in ATTRIBUTES.items()})

    def features(self, videos: Tensor) -> Tensor:
        """Features [N, 64] of videos uint8 [N, T, H, W, 3], any T, H and W."""
        x = videos.permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return x.mean(dim=(2, 3, 4))

    def forward(self, videos: Tensor) -> dict[str, Tensor]:
        """Logits [N, classes] of each attribute."""
        features = self.features(videos)
        return {name: head(features) for name, head in self.heads.items()}


def load_mini_video(device: str | None = None) -> tuple[MiniVideoNet, str]:
    """The packaged network in evaluation mode, and the hash of its weights."""
    network = MiniVideoNet()
    sha256 = load_exactly(network, read_checkpoint(WEIGHTS, "mini_video", WEIGHTS.name), "mini_video", WEIGHTS, WEIGHTS.name)
    return network.eval().requires_grad_(False).to(torch_device(device)), sha256


@lru_cache(maxsize=2)
def mini_detectors(frames: int | None = None, batch_size: int = 64, device: str | None = None) -> tuple[Detector, Detector]:
    """The network shown whole clips, and shown segments of 4 frames whose features are averaged."""
    network, sha256 = load_mini_video(device)
    where = torch_device(device)

    def whole(videos: Tensor) -> Tensor:
        return network.features(videos.to(where))

    def pieces(videos: Tensor) -> Tensor:
        parts = segmented(videos, SEGMENT)
        return network.features(parts.flatten(0, 1).to(where)).unflatten(0, parts.shape[:2]).mean(dim=1)

    cut = {"segments": f"{SEGMENT} frames, last frame repeated, averaged"}
    return (
        Detector("mini_video", "mini_video", DIM, 2, sha256, {"segments": "none"}, frames, whole, batch_size),
        Detector("mini_video_segments", f"mini_video, segments of {SEGMENT}", DIM, 1, sha256, cut, frames, pieces, batch_size),
    )


class MiniVideo(SetDistance):
    """Distances of shapes videos to a reference set, through mini_video.

    mini_fvd and mini_kvd look at whole clips, as FVD does; mini_fid_vid at segments of 4 frames, as FID-VID at segments of 16, so
    that it sees pictures more than motion.

    Args:
        backbone: `mini_video`.
        reference: `fp`, or a file of statistics.
        frames: how many of the first frames are looked at; null for all.
        resamples: of the bootstrap interval.
        seed: of the bootstrap.
        batch_size: videos that the network is shown at once; it changes no score.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: another backbone, or statistics that do not fit.
    """

    domain = "minis"

    def __init__(
        self,
        backbone: str = "mini_video",
        reference: str = "fp",
        frames: int | None = None,
        resamples: int = 200,
        seed: int = 0,
        batch_size: int = 64,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        if backbone != "mini_video":
            raise ConfigError(f"backbone={backbone} is not what mini_fvd looks through; set it to mini_video, or use metric=fvd_styleganv")
        clip, segments = mini_detectors(frames, batch_size, device)
        distances = (
            Distance(ScoreInfo("mini_fvd", "mini FVD", False, 0.0, None), "frechet", clip),
            Distance(ScoreInfo("mini_kvd", "mini KVD", False, None, None), "kernel", clip),
            Distance(ScoreInfo("mini_fid_vid", "mini FID-VID", False, 0.0, None), "frechet", segments),
        )
        super().__init__(distances, reference, resamples, seed, scores)
