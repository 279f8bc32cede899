"""Natural-scene statistics through scikit-video: how natural a video looks alone (NIQE, VIIDEO) and beside its reference.

Frames are turned into luminance (0.2989 R + 0.587 G + 0.114 B). The models behind NIQE were fitted to photographs, so a drawing or a
small synthetic video is far from natural even when it is perfect: compare methods on the same prompts, not with other papers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdqbench.errors import Unsupported
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.metrics.skvideo_shim import RELEASE, repaired

LEAST = {"niqe": 194, "viideo": 34, "strred": 96, "msssim": 176, "brisque_distance": 32}
"""Shorter side in pixels that each score needs.

NIQE: two patches of 96 and a border. VIIDEO: one block of 18 with 8 around it. ST-RRED: at a sixteenth of the size, more blocks of 3x3
than a block has pixels, without which its covariance is singular. MS-SSIM: its window of 11 after four halvings. BRISQUE: two scales.
"""
SHORTEST = {"niqe": 1, "viideo": 4, "strred": 2, "msssim": 1, "brisque_distance": 1}
"""Frames that each score needs; VIIDEO compares changes of one pair of frames with those of the next."""


def niqe(video: Tensor) -> float:
    """Natural Image Quality Evaluator (Mittal et al., IEEE SPL 2013), mean over frames of uint8 [T, H, W, 3]; 0 is natural."""
    return _measured("niqe", video, lambda measure, luma: float(np.mean(measure.niqe(luma))))


def viideo(video: Tensor) -> float:
    """Video Intrinsic Integrity and Distortion Evaluation Oracle (Mittal et al., IEEE TIP 2016) of uint8 [T, H, W, 3]; 0 is natural.

    The mean correlation of changes of the statistics at two scales, and how it varies: natural videos decorrelate.
    """
    return _measured("viideo", video, lambda measure, luma: float(measure.viideo_score(luma)))


def brisque_features(video: Tensor) -> Tensor:
    """The 36 features of BRISQUE (Mittal et al., IEEE TIP 2012), mean over frames of uint8 [T, H, W, 3]: float64 [36].

    BRISQUE's own score is a regression whose model scikit-video does not ship.
    """
    features = _measured("brisque_distance", video, lambda measure, luma: np.mean(measure.brisque_features(luma), axis=0, dtype=np.float64))
    return torch.from_numpy(features)


def brisque_distance(features: Tensor, references: Tensor) -> Tensor:
    """Mean over the 36 features of |f - r| / (|f| + |r|) (Canberra), of features [N, 36] and references [N, 36]: [N] in 0..1.

    It needs no regression and no scale of the features; a feature that is 0 in both counts 0.
    """
    size = features.abs() + references.abs()
    return ((features - references).abs() / size.where(size > 0, torch.ones_like(size))).mean(dim=1)


def strred(video: Tensor, reference: Tensor) -> float:
    """Spatio-temporal reduced reference entropic differences (Soundararajan and Bovik, IEEE TCSVT 2013); 0 for equal videos.

    Of uint8 [T, H, W, 3]; frames are taken in pairs, blocks compared before they are averaged.

    Raises:
        Unsupported: a video whose blocks are so alike that their covariance cannot be inverted.
    """

    def difference(measure: Any, luma: np.ndarray, other: np.ndarray) -> float:
        try:
            return float(measure.strred(other, luma)[1])
        except np.linalg.LinAlgError as error:
            raise Unsupported(f"strred cannot invert the covariance of a video's blocks ({error}); leave the score out") from error

    return _measured("strred", video, difference, reference)


def msssim(video: Tensor, reference: Tensor) -> float:
    """Multi-scale structural similarity (Wang et al., Asilomar 2003), mean over frames of uint8 [T, H, W, 3], in 0..1.

    A frame whose mean contrast term is negative at some scale, to which a fractional power cannot be applied, counts 0.
    """

    def similarity(measure: Any, luma: np.ndarray, other: np.ndarray) -> float:
        return float(np.nan_to_num(measure.msssim(other, luma), nan=0.0).astype(np.float64).mean())

    return _measured("msssim", video, similarity, reference)


def _measured(name: str, video: Tensor, fn: Callable[..., Any], reference: Tensor | None = None) -> Any:
    """`fn` of scikit-video's measures and the luminance [T, H, W] of one or both videos.

    Raises:
        Unsupported: too small or too short for the score.
    """
    frames, height, width = video.shape[:3]
    if min(height, width) < LEAST[name]:
        raise Unsupported(
            f"{name} needs frames of at least {LEAST[name]}x{LEAST[name]} pixels and these have {height}x{width}; leave the score out"
        )
    if frames < SHORTEST[name]:
        raise Unsupported(f"{name} needs videos of at least {SHORTEST[name]} frames and these have {frames}; leave the score out")
    with repaired() as skvideo, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # flat patches divide by zero on the way to defined values
        given = [video] if reference is None else [video, reference]
        return fn(skvideo.measure, *(skvideo.utils.rgb2gray(one.numpy())[..., 0] for one in given))


class Natural(PerVideo):
    """NIQE and VIIDEO, which need no reference.

    Args:
        scores: names of the scores wanted; None for both.

    Raises:
        ConfigError: scikit-video is not installed.
    """

    mode = "single"
    version = 1
    available = (
        ScoreInfo("niqe", "NIQE", False, 0.0, None),
        ScoreInfo("viideo", "VIIDEO", False, -1.0, 3.0),
    )

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        super().__init__(scores)
        with repaired():
            self._functions = {"niqe": niqe, "viideo": viideo}

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        return {
            name: torch.tensor([function(video) for video in batch.videos], dtype=torch.float64)
            for name, function in self._functions.items()
            if self.wants(name)
        }

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **_PROTOCOL}


class NaturalPaired(PerVideo):
    """ST-RRED, MS-SSIM and the distance of BRISQUE features to the reference video.

    Args:
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: scikit-video is not installed.
    """

    mode = "paired"
    version = 1
    available = (
        ScoreInfo("strred", "ST-RRED", False, 0.0, None),
        ScoreInfo("msssim", "MS-SSIM", True, 0.0, 1.0),
        ScoreInfo("brisque_distance", "BRISQUE distance", False, 0.0, 1.0),
    )

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        super().__init__(scores)
        with repaired():
            self._functions = {"strred": strred, "msssim": msssim}

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        values = {}
        for name, function in self._functions.items():
            if self.wants(name):
                assert batch.references is not None
                pairs = zip(batch.videos, batch.references, strict=True)
                values[name] = torch.tensor([function(video, reference) for video, reference in pairs], dtype=torch.float64)
        if self.wants("brisque_distance"):
            key = f"brisque scikit-video {RELEASE} luminance 1"
            features, references = (
                batch.features("videos", key, _brisque),
                batch.features("references", key, _brisque),
            )
            values["brisque_distance"] = brisque_distance(features, references)
        return values

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **_PROTOCOL}


_PROTOCOL = {"library": f"scikit-video {RELEASE}", "luminance": "0.2989 R + 0.587 G + 0.114 B", "frames": "all"}


def _brisque(videos: Tensor) -> Tensor:
    return torch.stack([brisque_features(video) for video in videos])
