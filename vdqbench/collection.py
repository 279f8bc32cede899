"""A folder of someone's own videos with their prompts and references: what is there, what is missing, and batches of it."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from vdqbench.metrics.base import VideoBatch

TOGETHER, BYTES = 16, 2**28
"""Most videos, and most bytes of frames, that are scored at once; neither changes a score."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A video that can be scored: its name in the folder, where it is, its prompt and, if there are any, its reference and image."""

    name: str
    path: Path
    prompt: str
    reference: Path | None = None
    image: Path | None = None

    def read(self) -> Item:
        """Decode all of it.

        Raises:
            ConfigError: a part cannot be read, or the reference has another shape than the video.
        """
        frames = video.read(self.path)
        reference = None if self.reference is None else video.read(self.reference)
        if reference is not None and reference.shape != frames.shape:
            raise ConfigError(f"has the shape {list(frames.shape)}, its reference {self.reference} {list(reference.shape)}")
        return Item(self, frames, reference, None if self.image is None else video.read_image(self.image))


@dataclass(frozen=True, eq=False)
class Item:
    """A decoded video: frames uint8 [T, H, W, 3], those of its reference, and the image [h, w, 3] that it was made from."""

    entry: Entry
    frames: np.ndarray
    reference: np.ndarray | None
    image: np.ndarray | None

    @property
    def shape(self) -> Shape:
        """What the videos of a batch have in common."""
        return (*self.frames.shape, *(() if self.image is None else self.image.shape))

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(part.nbytes for part in (self.frames, self.reference, self.image) if part is not None)


@dataclass
class Collection:
    """The videos of a folder in natural order, and what is wrong with those that cannot be scored.

    Attributes:
        entries: videos with all that belongs to them.
        problems: reason by name, for everything that was expected and cannot be scored.
        ignored: names of things in the folder that are no videos.
        total: number of videos that were expected.
    """

    entries: list[Entry]
    problems: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    total: int = 0

    @classmethod
    def of(cls, videos: Path, prompts: Path, references: Path | None = None, images: Path | None = None) -> Collection:
        """Match a folder of videos with a file of prompts, and folders of references and images of the same names without suffix.

        `prompts` is text (one prompt a line, for the videos in natural order), CSV with columns file and prompt, or JSON, either
        {file: prompt} or a list of {"file": ..., "prompt": ...}. Files may be named with or without their suffix.

        Raises:
            ConfigError: a folder or file is missing or empty, or the file does not have the form described.
        """
        found, others = video.listing(_folder("videos", videos))
        if not found:
            raise ConfigError(f"videos={videos} holds no video; expected files {', '.join(sorted(video.SUFFIXES))} or folders of images")
        texts, missing = _prompts(prompts, found)
        partners = {} if references is None else _by_stem("references", video.listing(_folder("references", references))[0])
        pictures = {} if images is None else _by_stem("images", video.images(_folder("images", images)))
        collection = cls(
            [],
            {name: f"{prompts} has a prompt for it and {videos} has no such video" for name in missing},
            [path.name for path in others if path.resolve() != prompts.resolve()],
            len(found) + len(missing),
        )
        for path in found:
            entry = Entry(path.name, path, texts.get(path.name, ""), partners.get(_stem(path)), pictures.get(_stem(path)))
            if not entry.prompt:
                collection.problems[path.name] = f"has no prompt in {prompts}"
            elif references is not None and entry.reference is None:
                collection.problems[path.name] = f"has no reference of the same name in {references}"
            elif images is not None and entry.image is None:
                collection.problems[path.name] = f"has no image of the same name in {images}"
            else:
                collection.entries.append(entry)
        return collection

    def batches(self, store: Store | None = None) -> Iterator[tuple[list[Entry], VideoBatch]]:
        """Every readable video in a batch of videos of its shape, decoded once; the others become problems.

        At most one batch per shape is held, and `BYTES` of frames altogether.
        """
        pending: dict[Shape, list[Item]] = {}
        for entry in list(self.entries):
            try:
                item = entry.read()
            except ConfigError as error:
                self.problems[entry.name] = str(error)
                continue
            pending.setdefault(item.shape, []).append(item)
            if len(pending[item.shape]) == TOGETHER:
                yield _batch(pending.pop(item.shape), store)
            while sum(one.size for group in pending.values() for one in group) > BYTES:
                largest = max(pending, key=lambda shape: sum(one.size for one in pending[shape]))
                yield _batch(pending.pop(largest), store)
        for group in pending.values():
            yield _batch(group, store)


def _batch(items: list[Item], store: Store | None) -> tuple[list[Entry], VideoBatch]:
    from vdqbench.metrics.base import VideoBatch

    videos, keys = _side([item.frames for item in items])
    references, reference_keys = _side([item.reference for item in items])
    images, image_keys = _side([item.image for item in items])
    assert videos is not None
    entries = [item.entry for item in items]
    prompts = [entry.prompt for entry in entries]
    return entries, VideoBatch(videos, prompts, references, store, keys, reference_keys, images, image_keys)


def _side(parts: Sequence[np.ndarray | None]) -> tuple[Tensor | None, list[str] | None]:
    """Stacked arrays and the keys of their content; None for both where there are none."""
    import torch

    arrays = [part for part in parts if part is not None]
    return (torch.from_numpy(np.stack(arrays)), [content_key(one) for one in arrays]) if arrays else (None, None)


def content_key(frames: np.ndarray) -> str:
    """16 hex digits that name frames by what they show, however they were stored."""
    return hashlib.sha256(repr((frames.dtype.str, frames.shape)).encode() + np.ascontiguousarray(frames).tobytes()).hexdigest()[:16]


def _folder(key: str, path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"{key}={path} is not a folder; give the folder that holds the videos")
    return path


def _by_stem(key: str, paths: list[Path]) -> dict[str, Path]:
    """Paths by name without suffix.

    Raises:
        ConfigError: two of them have the same.
    """
    named: dict[str, Path] = {}
    for path in paths:
        if _stem(path) in named:
            raise ConfigError(f"{key}: {named[_stem(path)].name} and {path.name} have the same name without suffix; rename one of them")
        named[_stem(path)] = path
    return named


def _stem(path: Path) -> str:
    """The name without the suffix of a file; the whole name of a folder."""
    return path.name if path.is_dir() else path.stem


def _prompts(file: Path, videos: list[Path]) -> tuple[dict[str, str], list[str]]:
    """Prompt by name of the video, and names in the file that no video has."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts={file} cannot be read ({error}); expected a text, CSV or JSON file in UTF-8") from error
    if file.suffix.lower() not in (".csv", ".json"):
        lines = [line.strip() for line in text.rstrip().splitlines()]
        if len(lines) != len(videos):
            raise ConfigError(
                f"prompts={file} has {len(lines)} lines and there are {len(videos)} videos ({videos[0].name} to {videos[-1].name}); "
                "give one prompt a line in the order of the names, or a CSV file with the columns file and prompt"
            )
        return {path.name: line for path, line in zip(videos, lines, strict=True)}, []
    pairs = _from_csv(file, text) if file.suffix.lower() == ".csv" else _from_json(file, text)
    by_name, by_stem = {path.name: path.name for path in videos}, {}
    for path in videos:
        by_stem[_stem(path)] = None if _stem(path) in by_stem else path.name
    found: dict[str, str] = {}
    missing = []
    for name, prompt in pairs:
        match = by_name.get(Path(name).name) or by_stem.get(Path(name).name)
        if match is None:
            missing.append(name)
        elif match in found:
            raise ConfigError(f"prompts={file} names {match} twice; give one prompt per video")
        else:
            found[match] = prompt.strip()
    return found, missing


def _from_csv(file: Path, text: str) -> list[tuple[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows or not {"file", "prompt"} <= set(rows[0]):
        raise ConfigError(f"prompts={file} must have a first line with the columns file and prompt, and a line per video below it")
    return [((row["file"] or "").strip(), row["prompt"] or "") for row in rows]


def _from_json(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"prompts={file} is not JSON ({error})") from error
    items = list(data.items()) if isinstance(data, dict) else []
    if isinstance(data, list) and all(isinstance(item, dict) and {"file", "prompt"} <= set(item) for item in data):
        items = [(item["file"], item["prompt"]) for item in data]
    if not items or not all(isinstance(name, str) and isinstance(prompt, str) for name, prompt in items):
        raise ConfigError(
            f'prompts={file} must be {{"file": "prompt", ...}} or a list of {{"file": ..., "prompt": ...}}, all of them texts'
        )
    return items
