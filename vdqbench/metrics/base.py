"""What every metric is: scores with their directions, a batch of videos, streaming update and compute.

A new metric of one value per video subclasses `PerVideo` and writes `measure`; a metric of a whole set (a distance between
distributions) subclasses `Streaming`. Every pass of a network over frames goes through `VideoBatch.features`, so that metrics
share it and the store remembers it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vdqbench.errors import ConfigError, nearest
from vdqbench.store import Store, key_of

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
    """A measured score.

    Attributes:
        values: one value per video in the order of `update`; None for scores of a set or of the system.
        mean: their mean, or the value of the set.
        n: number of videos.
        interval: 95 % bootstrap interval of a set score.
        label: what the score is called where `ScoreInfo.label` does not say enough, such as "FVD (I3D, styleganv, n=128, 16 frames)".
    """

    values: list[float] | None
    mean: float
    n: int
    interval: tuple[float, float] | None = None
    label: str | None = None


Load = Callable[[], Tensor]
Side = Literal["videos", "references", "images"]
"""The videos themselves, the reference videos, and the images that the videos were conditioned on."""


class VideoBatch:
    """Videos uint8 [N, T, H, W, 3] with their N prompts and, for paired metrics, the reference videos of the same shape.

    Args:
        videos: the frames, or a function that decodes them, which is only called if some metric looks at them.
        prompts: one text per video.
        references: reference videos, or a function that decodes them.
        store: where `features` keeps what it computes; None to keep it for the life of the batch.
        keys: name of each video's content, needed with a store; equal keys must mean equal frames.
        reference_keys: the same for the references.
        images: images uint8 [N, h, w, 3] that the videos were conditioned on, or a function that decodes them.
        image_keys: the same for them.

    Raises:
        TypeError: videos that are not uint8; a conversion would have to guess their range.
        ValueError: another shape, an empty batch, or prompts, references or keys that do not fit.
    """

    def __init__(
        self,
        videos: Tensor | Load,
        prompts: Sequence[str],
        references: Tensor | Load | None = None,
        store: Store | None = None,
        keys: Sequence[str] | None = None,
        reference_keys: Sequence[str] | None = None,
        images: Tensor | Load | None = None,
        image_keys: Sequence[str] | None = None,
    ) -> None:
        self.prompts = list(prompts)
        self._given = {"videos": videos, "references": references, "images": images}
        self._keys = {"videos": keys, "references": reference_keys, "images": image_keys}
        self._frames: dict[str, Tensor] = {}
        self._store = store
        self._memo: dict[Any, Any] = {}
        for of, given in self._given.items():
            if given is not None and not callable(given):
                self._take(of, given)
            if (names := self._keys[of]) is not None and len(names) != len(self):
                raise ValueError(f"{len(names)} keys do not fit {len(self)} {of}; give one key per video")
        if not self.prompts:
            raise ValueError("a batch must hold at least one video")

    def __len__(self) -> int:
        return len(self.prompts)

    def has(self, of: Side) -> bool:
        """Whether the batch has references or images; it always has videos."""
        return self._given[of] is not None

    @property
    def has_references(self) -> bool:
        """Whether there are reference videos; asking decodes none."""
        return self.has("references")

    @property
    def videos(self) -> Tensor:
        """The frames, uint8 [N, T, H, W, 3]."""
        return self._side("videos")

    @property
    def references(self) -> Tensor | None:
        """The reference videos' frames, uint8 [N, T, H, W, 3]; None where there are none."""
        return self._side("references") if self.has("references") else None

    @property
    def images(self) -> Tensor | None:
        """The images that the videos were conditioned on, uint8 [N, h, w, 3]; None where there are none."""
        return self._side("images")[:, 0] if self.has("images") else None

    def memo(self, key: Any, fn: Callable[[], T]) -> T:
        """The value of `fn()`, computed once per batch and key, so that metrics share features; `key` must name all it depends on."""
        if key not in self._memo:
            self._memo[key] = fn()
        return self._memo[key]

    def features(self, of: Side, key: str, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Features [N, ...] of one side: computed once per batch, and once for ever where the batch has a store.

        Args:
            of: videos, references, or images (as videos of one frame).
            key: names all that the features depend on besides the frames: network, hash of its weights, preprocessing, version.
            fn: features [M, ...] of frames uint8 [M, T, H, W, 3]; it gets the videos that the store lacks, and must treat each alone.

        Raises:
            ValueError: the batch has no such side, or `fn` returned another number of rows.
        """
        if not self.has(of):
            raise ValueError(f"features of the {of} were asked for and the batch has none; give them")
        return self.memo(("features", of, key), lambda: self._features(of, key, fn))

    def texts(self, key: str, fn: Callable[[list[str]], Tensor]) -> Tensor:
        """Features [N, ...] of the prompts, as `features`; `fn` gets the texts that the store lacks.

        Raises:
            ValueError: `fn` returned another number of rows.
        """

        def rows(at: list[int]) -> Tensor:
            return _embedded(fn, [self.prompts[i] for i in at])

        return self.memo(("texts", key), lambda: self._stored(key, [key_of(["prompt", text]) for text in self.prompts], rows))

    def _features(self, of: Side, key: str, fn: Callable[[Tensor], Tensor]) -> Tensor:
        def rows(at: list[int]) -> Tensor:
            frames = self._side(of)
            return _embedded(fn, frames if len(at) == len(self) else frames[at])

        return self._stored(key, self._keys[of], rows)

    def _stored(self, key: str, names: Sequence[str] | None, rows: Callable[[list[int]], Tensor]) -> Tensor:
        """What the store has under these names, and what `rows` makes of the positions that it lacks."""
        if self._store is None or names is None:
            return rows(list(range(len(self))))
        suffix = f".{key_of(key)}.safetensors"
        found = [_read(self._store.get("features", name, suffix)) for name in names]
        if missing := [i for i, one in enumerate(found) if one is None]:
            for i, made in zip(missing, rows(missing), strict=True):
                row = made.contiguous().clone()
                self._store.put("features", names[i], suffix, partial(_save, row))
                found[i] = row
        return torch.stack([one for one in found if one is not None])

    def _side(self, of: str) -> Tensor:
        if of not in self._frames:
            given = self._given[of]
            assert callable(given)
            self._take(of, given())
        return self._frames[of]

    def _take(self, of: str, frames: Tensor) -> None:
        """Keep the frames of one side once they are known to fit."""
        if of == "images" and isinstance(frames, Tensor) and frames.ndim == 4:
            frames = frames[:, None]
        _check(frames, of)
        if len(frames) != len(self):
            raise ValueError(f"{len(self)} prompts do not fit {len(frames)} {of}; give one prompt per video")
        if of != "images":
            for other, kept in self._frames.items():
                if other != "images" and kept.shape != frames.shape:
                    videos, references = (frames, kept) if of == "videos" else (kept, frames)
                    raise ValueError(f"references {list(references.shape)} must have the shape of the videos {list(videos.shape)}")
        self._frames[of] = frames


def _embedded(fn: Callable[[Any], Tensor], items: Any) -> Tensor:
    rows = fn(items).detach().cpu()
    if rows.ndim == 0 or len(rows) != len(items):
        raise ValueError(f"features of shape {list(rows.shape)} do not fit {len(items)} videos; their first side must count the videos")
    return rows


def _read(path: Path | None) -> Tensor | None:
    return None if path is None else load_file(path)["features"]


def _save(row: Tensor, path: Path) -> None:
    save_file({"features": row}, path)


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
    against: Side = "references"
    """What a paired metric compares with."""

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
            ConfigError: a paired metric got nothing to compare with.
            ValueError: a value is not finite.
        """
        if self.mode == "paired" and not batch.has(self.against):
            what = "the images that videos were conditioned on" if self.against == "images" else "reference videos"
            fix = "score without it" if self.against == "images" else "give the full-precision videos as references"
            raise ConfigError(f"{type(self).__name__} compares with {what} and got none; {fix}")
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
