"""What every metric is: scores with their directions, a batch of videos, streaming update and compute.

A new metric of one value per video subclasses `PerVideo` and writes `measure`; a metric of a whole set (a distance between
distributions) subclasses `Streaming`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from torch import Tensor

from vdqbench.errors import ConfigError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class ScoreInfo:
    """What a score is called, which way is better (None: neither), and the range its values can have (None: unbounded)."""

    name: str
    label: str
    higher_is_better: bool | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Score:
    """A measured score: one value per video in the order of `update` (None for scores of a set), their mean, and n videos."""

    values: list[float] | None
    mean: float
    n: int


class VideoBatch:
    """Videos uint8 [N, T, H, W, 3] with their N prompts and, for paired metrics, the reference videos of the same shape.

    Raises:
        TypeError: videos that are not uint8; a conversion would have to guess their range.
        ValueError: another shape, an empty batch, or prompts or references that do not fit.
    """

    def __init__(self, videos: Tensor, prompts: Sequence[str], references: Tensor | None = None) -> None:
        _check(videos, "videos")
        if len(prompts) != len(videos):
            raise ValueError(f"{len(prompts)} prompts do not fit {len(videos)} videos; give one prompt per video")
        if references is not None:
            _check(references, "references")
            if references.shape != videos.shape:
                raise ValueError(f"references {list(references.shape)} must have the shape of the videos {list(videos.shape)}")
        self.videos, self.prompts, self.references = videos, list(prompts), references
        self._memo: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    def memo(self, key: Any, fn: Callable[[], T]) -> T:
        """The value of `fn()`, computed once per batch and key, so that metrics share features; `key` must name all it depends on."""
        if key not in self._memo:
            self._memo[key] = fn()
        return self._memo[key]


def _check(videos: Tensor, name: str) -> None:
    if not isinstance(videos, Tensor) or videos.dtype != torch.uint8:
        kind = str(videos.dtype) if isinstance(videos, Tensor) else type(videos).__name__
        raise TypeError(f"{name} must be a uint8 tensor with values 0-255, got {kind}; convert with (x * 255).round().byte()")
    if videos.ndim != 5 or videos.shape[-1] != 3 or videos.numel() == 0:
        raise ValueError(f"{name} must be [N, T, H, W, 3] with no empty side, got {list(videos.shape)}")


class Metric:
    """What all metrics have: scores, how they are taken, and by which protocol.

    Class attributes:
        mode: `single` (videos and prompts), `paired` (also references), `set` (one value for all videos), `system` (no videos).
        version: raised when the definition changes its values.
        domain: `minis` if it is only defined on the shapes videos.

    Attributes:
        scores: the scores it gives, in order.
    """

    mode: ClassVar[Literal["single", "paired", "set", "system"]]
    version: ClassVar[int] = 1
    domain: ClassVar[str | None] = None
    scores: tuple[ScoreInfo, ...]

    def protocol(self) -> dict[str, Any]:
        """What decides the values besides the videos: JSON-able; never a path, a device or a batch size."""
        return {"version": self.version}


class Streaming(Metric, ABC):
    """A metric that is fed batches of videos and asked for its scores at the end."""

    @abstractmethod
    def update(self, batch: VideoBatch) -> None:
        """Take in a batch."""

    @abstractmethod
    def compute(self) -> dict[str, Score]:
        """The scores of all videos so far.

        Raises:
            ValueError: no video was seen.
        """

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take in what `other`, of the same protocol, has seen, as if its videos had come after one's own."""


class PerVideo(Streaming):
    """A metric with one value per video and score.

    Args:
        scores: names of the scores wanted; None for all of them.

    Raises:
        ConfigError: a name that the metric does not have.
    """

    available: tuple[ScoreInfo, ...]

    def __init__(self, scores: Sequence[str] | None = None) -> None:
        self.scores = chosen(self.available, scores, type(self).__name__)
        self._values: dict[str, list[float]] = {info.name: [] for info in self.scores}

    @abstractmethod
    def measure(self, batch: VideoBatch) -> Mapping[str, Tensor]:
        """Values [N] of at least the chosen scores."""

    def wants(self, *names: str) -> bool:
        """Whether one of the scores is among the chosen."""
        return any(name in self._values for name in names)

    def update(self, batch: VideoBatch) -> None:
        """Take in a batch.

        Raises:
            ConfigError: a paired metric got no references.
            ValueError: a value is not finite.
        """
        if self.mode == "paired" and batch.references is None:
            raise ConfigError(
                f"{type(self).__name__} compares with reference videos and got none; give the full-precision videos as references"
            )
        measured = self.measure(batch)
        new = {name: measured[name].double().tolist() for name in self._values}
        for name, values in new.items():
            if bad := [i for i, value in enumerate(values) if not math.isfinite(value)]:
                raise ValueError(
                    f"{name} is {values[bad[0]]} for the video of prompt {batch.prompts[bad[0]]!r}; every score must be finite"
                )
        for name, values in new.items():
            self._values[name] += values

    def compute(self) -> dict[str, Score]:
        n = len(self._values[self.scores[0].name])
        if n == 0:
            raise ValueError(f"{type(self).__name__} has seen no video; update it with at least one batch")
        return {name: Score(list(values), math.fsum(values) / n, n) for name, values in self._values.items()}

    def merge(self, other: Self) -> None:
        """Append the other's videos.

        Raises:
            ValueError: the other measures by another protocol.
        """
        if other.protocol() != self.protocol() or other.scores != self.scores:
            raise ValueError(f"shards of {type(self).__name__} can only be merged when their protocols and scores are equal")
        for name, values in other._values.items():
            self._values[name] += values


def chosen(available: tuple[ScoreInfo, ...], names: Sequence[str] | None, where: str) -> tuple[ScoreInfo, ...]:
    """The scores of these names in the order of `available`; all of them for None.

    Raises:
        ConfigError: none, or a name that is not available.
    """
    if names is None:
        return available
    known = [info.name for info in available]
    for name in names:
        if name not in known:
            raise ConfigError(f"scores={name} is not a score of {where}{nearest(str(name), known)}")
    if not names:
        raise ConfigError(f"scores=[] of {where} is empty; name at least one of {', '.join(known)}")
    return tuple(info for info in available if info.name in names)
