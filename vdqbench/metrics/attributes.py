"""Whether a shapes video shows what its prompt says: colour, shape, background and motion, judged by mini_clip's linear heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vdqbench.errors import ConfigError, Unsupported
from vdqbench.metrics.backbone import open_backbone
from vdqbench.metrics.base import PerVideo, ScoreInfo, VideoBatch
from vdqbench.metrics.heads import Heads
from vdqbench.shapes import ATTRIBUTES, Scene


@torch.no_grad()
def judge(heads: Heads, features: Tensor) -> Tensor:
    """Class of each attribute, in the order of `shapes.ATTRIBUTES`, for frame features [N, T, D]: [N, 4] of int64."""
    logits = heads(features)
    return torch.stack([logits[name].argmax(dim=1) for name in ATTRIBUTES], dim=1)


def expected(prompts: Sequence[str]) -> Tensor:
    """Class of each attribute that the prompts ask for: [N, 4] of int64.

    Raises:
        ConfigError: a prompt that is not a caption of a shapes video.
    """
    try:
        return torch.tensor([Scene.from_caption(prompt).labels for prompt in prompts])
    except ValueError as error:
        raise ConfigError(
            f"metric attributes can only judge captions of shapes videos ({error}); use prompts such as "
            f"{Scene('red', 'circle', 'dark', 'left').caption!r} or leave the metric out"
        ) from error


def accuracy(judged: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Percent right of each video, [N]: 0 or 100 for each attribute, and `attributes`, the mean of the four."""
    right = 100.0 * (judged == wanted).double()
    return {**dict(zip(ATTRIBUTES, right.unbind(dim=1), strict=True)), "attributes": right.mean(dim=1)}


class Attributes(PerVideo):
    """Percent of videos with the right colour, shape, background and motion, and the mean of the four.

    Args:
        batch_size: frames that are embedded at once.
        device: where; None for a GPU if there is one.
        scores: names of the scores wanted; None for all.
    """

    mode = "single"
    version = 1
    domain = "minis"
    available = (
        *(ScoreInfo(name, f"{name.capitalize()} (%)", True, 0.0, 100.0) for name in ATTRIBUTES),
        ScoreInfo("attributes", "Attributes (%)", True, 0.0, 100.0),
    )

    def __init__(self, batch_size: int = 64, device: str | None = None, scores: Sequence[str] | None = None) -> None:
        super().__init__(scores)
        self._batch_size, self._backbone = batch_size, open_backbone({"model": "mini_clip"}, device)

    def measure(self, batch: VideoBatch) -> dict[str, Tensor]:
        assert self._backbone.heads is not None
        if batch.videos.shape[1] < 2 and self.wants("motion", "attributes"):
            raise Unsupported(
                "motion cannot be judged from videos of one frame; score longer videos or leave motion and attributes out of scores"
            )
        wanted = expected(batch.prompts)
        return accuracy(judge(self._backbone.heads, self._backbone.features(batch, batch_size=self._batch_size)), wanted)

    def protocol(self) -> dict[str, Any]:
        return {**super().protocol(), **self._backbone.protocol(), "judge": "linear heads", "frames": "all"}
