"""CLIPSIM, CLIP-temp and QVD's Text, Domain and Smooth: how well frames show their prompt or reference, how alike neighbours are.

CLIPSIM (GODIVA, arXiv 2104.14806) is the mean over frames of the cosine of frame and prompt; CLIP-temp the mean cosine of
consecutive frames. A frame does not show motion, so neither does CLIPSIM: a video that moves the wrong way can score well.

Protocol `clip` prepares frames as the model was trained. Protocol `evalcrafter` is that of EvalCrafter's code (arXiv 2310.11440),
on which the numbers of the quantization papers stand: frames squashed to 224x224 and fed as 0-255 floats without mean and
standard deviation, which gives about 0.2 where `clip` gives about 0.3.

QVD's Text and Smooth are CLIPSIM and CLIP-temp by protocol `clip`, times 100; Domain is the same cosine with what the video was
made from or after. All of them share the features of one pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import ConfigError, Unsupported, nearest
from vdqbench.metrics.backbone import CLIP, CV2, Preprocessing, open_backbone
from vdqbench.metrics.base import PerVideo, ScoreInfo, Side, VideoBatch


def clipsim(frames: Tensor, captions: Tensor) -> Tensor:
    """Mean over frames of the cosine of frame features [N, T, D] and caption features [N, D]: [N] in -1..1."""
    return F.cosine_similarity(frames, captions[:, None], dim=-1).mean(dim=1)


def clip_temp(frames: Tensor) -> Tensor:
    """Mean over t of the cosine of frame features t and t + 1 of [N, T, D]: [N] in -1..1.

    Raises:
        Unsupported: videos of a single frame have no consecutive frames.
    """
    if frames.shape[1] < 2:
        raise Unsupported(
            "clip_temp compares consecutive frames and these videos have one frame; score longer videos or leave the score out"
        )
    return F.cosine_similarity(frames[:, 1:], frames[:, :-1], dim=-1).mean(dim=1)


class Clip(PerVideo):
    """CLIPSIM and CLIP-temp by one of the two protocols.

    Args:
        backbone: see `vdqbench.metrics.backbone.open_backbone`.
        protocol: `clip` or `evalcrafter`; the names of the scores tell them apart.
        antialias: whether torchvision's resize of CLIP-temp smooths (evalcrafter only). Releases before 0.17, among them
            EvalCrafter's, did not by default.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for both.

    Raises:
        ConfigError: an unknown protocol, or a backbone that cannot be used.
    """

    mode = "single"
    version = 1

    def __init__(
        self,
        backbone: Mapping[str, Any],
        protocol: str = "clip",
        antialias: bool = False,
        batch_size: int = 64,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        suffixes = {"clip": "", "evalcrafter": "_evalcrafter"}
        if protocol not in suffixes:
            raise ConfigError(f"metric protocol={protocol} is not one of CLIPSIM's{nearest(str(protocol), suffixes)}")
        if protocol == "evalcrafter" and backbone.get("model") == "mini_clip":
            raise ConfigError(
                "protocol=evalcrafter feeds 0-255 values, which mini_clip was not trained on; use protocol=clip or model: ViT-B-32"
            )
        kind = "" if protocol == "clip" else " (EvalCrafter)"
        self._sim, self._temp = f"clipsim{suffixes[protocol]}", f"clip_temp{suffixes[protocol]}"
        self.available = (
            ScoreInfo(self._sim, f"CLIPSIM{kind}", True, -1.0, 1.0),
            ScoreInfo(self._temp, f"CLIP-temp{kind}", True, -1.0, 1.0),
        )
        super().__init__(scores)
        self._protocol, self._batch_size = protocol, batch_size
        self._for_sim = CLIP if protocol == "clip" else CV2
        self._for_temp = CLIP if protocol == "clip" else Preprocessing("evalcrafter_torchvision", antialias)
        self._backbone = open_backbone(backbone, device)

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        values = {}
        if self.wants(self._temp):
            values[self._temp] = clip_temp(self._backbone.features(batch, "videos", self._for_temp, self._batch_size))
        if self.wants(self._sim):
            frames = self._backbone.features(batch, "videos", self._for_sim, self._batch_size)
            values[self._sim] = clipsim(frames, self._backbone.captions(batch))
        return values

    def protocol(self) -> dict[str, Any]:
        own: dict[str, Any] = {"protocol": self._protocol, "frames": "all"}
        if self._protocol == "evalcrafter":
            own["antialias"] = self._for_temp.antialias
        return {**super().protocol(), **own, **self._backbone.protocol()}


def clip_domain(frames: Tensor, references: Tensor) -> Tensor:
    """Mean over frames of the cosine of frame features [N, T, D] and reference features: [N] in -1..1.

    The reference is one image, [N, 1, D], with which every frame is compared, or a video, [N, T, D], frame by frame.
    """
    return F.cosine_similarity(frames, references, dim=-1).mean(dim=1)


class QVDClip(PerVideo):
    """CLIP Text, Domain and Smooth of QVD's tables (100 times the cosines), with the backbone's own preprocessing.

    QVD states neither the variant of CLIP nor, for videos made from a sketch, what Domain compares with.

    Args:
        backbone: see `vdqbench.metrics.backbone.open_backbone`.
        reference: what Domain compares a frame with: `image`, the image that the video was conditioned on, or `fp`, the same frame
            of the reference video.
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all.

    Raises:
        ConfigError: an unknown reference, or a backbone that cannot be used.
    """

    mode = "paired"
    version = 1
    available = (
        ScoreInfo("clip_text", "CLIP Text (x100)", True, -100.0, 100.0),
        ScoreInfo("clip_domain", "CLIP Domain (x100)", True, -100.0, 100.0),
        ScoreInfo("clip_smooth", "CLIP Smooth (x100)", True, -100.0, 100.0),
    )

    def __init__(
        self,
        backbone: Mapping[str, Any],
        reference: str = "fp",
        batch_size: int = 64,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        super().__init__(scores)
        sides: dict[str, Side] = {"fp": "references", "image": "images"}
        if reference not in sides:
            raise ConfigError(f"metric reference={reference} is not one of Domain's{nearest(str(reference), sides)}")
        self._reference, self._batch_size = reference, batch_size
        self.against = sides[reference] if self.wants("clip_domain") else "videos"
        self._backbone = open_backbone(backbone, device)

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        frames = self._backbone.features(batch, batch_size=self._batch_size)
        values = {}
        if self.wants("clip_text"):
            values["clip_text"] = 100 * clipsim(frames, self._backbone.captions(batch))
        if self.wants("clip_domain"):
            values["clip_domain"] = 100 * clip_domain(frames, self._backbone.features(batch, self.against, batch_size=self._batch_size))
        if self.wants("clip_smooth"):
            values["clip_smooth"] = 100 * clip_temp(frames)
        return values

    def protocol(self) -> dict[str, Any]:
        domain = {"fp": "same frame of the reference video", "image": "conditioning image"}[self._reference]
        own = {"domain": domain} if self.wants("clip_domain") else {}
        return {**super().protocol(), "protocol": "clip", "frames": "all", **own, **self._backbone.protocol()}
