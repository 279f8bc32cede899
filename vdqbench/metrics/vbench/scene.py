"""Scene: whether a captioner sees the scene that the prompt names (VBench 4.2.6)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vdqbench.errors import ConfigError
from vdqbench.metrics.base import VideoBatch
from vdqbench.metrics.vbench.dimension import Dimension
from vdqbench.metrics.vbench.frames import middle_frames
from vdqbench.metrics.vbench.plug import plug

FRAMES = 16


class Captioner(Protocol):
    """What `scene` plugs in; its name becomes part of the score's."""

    name: str

    def captions(self, frames: Tensor) -> list[str]:
        """One caption for each frame of uint8 [M, H, W, 3]."""

    def protocol(self) -> dict[str, Any]:
        """What decides the captions: network, hash of its weights, version; never a path or a device."""


def shows(scene: str, caption: str) -> bool:
    """Whether every word of the scene, cut at single spaces, is a part of the caption: `art gallery` is in `a gallery of party hats`."""
    return all(word in caption for word in scene.split(" "))


def success(scene: str, captions: Sequence[str]) -> float:
    """Share of captions that show the scene, 0..1.

    Raises:
        ValueError: no caption.
    """
    if not captions:
        raise ValueError(f"no caption was made for the scene {scene!r}; the captioner must give one for each frame")
    return sum(shows(scene, caption) for caption in captions) / len(captions)


class Scene(Dimension):
    """Share of 16 frames whose caption names the scene, by a captioner that is plugged in, since VBench's own, Tag2Text, is in no package.

    Args:
        captioner: `{_target_: package.module.Class, ...}`, see `Captioner`.
        labels: JSON file of scene by prompt; None if the prompt is the scene, as it is for all 86 of VBench.
        batch_size, device: handed to a captioner that takes them.
        scores: names of the scores wanted; None for the one there is, `scene_<captioner>`.

    Raises:
        ConfigError: the captioner cannot be built, or the labels cannot be read.
    """

    def __init__(
        self,
        captioner: Mapping[str, Any] | None = None,
        labels: str | None = None,
        batch_size: int = 16,
        device: str | None = None,
        scores: Sequence[str] | None = None,
    ) -> None:
        key = "metric.vbench_scene.captioner"
        self._captioner: Captioner = plug(captioner, key, ("captions",), batch_size=batch_size, device=device)
        self._labels = None if labels is None else _read(labels)
        super().__init__("scene", "Scene", self._captioner.name, 0.0, 1.0, scores)

    def values(self, batch: VideoBatch) -> Tensor:
        chosen = middle_frames(batch.videos.shape[1], FRAMES)
        values = []
        for video, prompt in zip(batch.videos, batch.prompts, strict=True):
            captions = self._captioner.captions(video[chosen])
            if len(captions) != FRAMES:
                raise ValueError(
                    f"the captioner {self._captioner.name} gave {len(captions)} captions for {FRAMES} frames; it must give one each"
                )
            values.append(success(self._scene(prompt), captions))
        return torch.tensor(values, dtype=torch.float64)

    def _scene(self, prompt: str) -> str:
        if self._labels is None:
            return prompt
        if prompt not in self._labels:
            raise ConfigError(f"metric.vbench_scene.labels has no scene for the prompt {prompt!r}; add it to the file")
        return self._labels[prompt]

    def protocol(self) -> dict[str, Any]:
        labels = "prompt" if self._labels is None else self._labels
        return {**super().protocol(), **self._captioner.protocol(), "version": self.version, "frames": FRAMES, "labels": labels}


def _read(path: str) -> dict[str, str]:
    try:
        labels = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"metric.vbench_scene.labels={path} cannot be read ({error}); give a JSON file of scene by prompt") from error
    if not isinstance(labels, dict) or not all(isinstance(scene, str) and scene for scene in labels.values()):
        raise ConfigError(f"metric.vbench_scene.labels={path} must be a JSON object of scene by prompt")
    return labels
