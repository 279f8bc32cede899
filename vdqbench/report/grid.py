"""Videos of several cells beside each other, prompt by prompt: a contact sheet (PNG) and one playing video (mp4)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vdqbench import sheet, video
from vdqbench.store import write_atomic

if TYPE_CHECKING:
    from PIL.Image import Image

Video = np.ndarray | Path | str | None
"""Frames uint8 [T, H, W, 3], a file that holds them, or None for a missing one, which stays visible."""
PNG_LIMIT = 1_000_000


def write_contact_sheet(
    path: str | Path, columns: Mapping[str, Sequence[Video]], captions: Sequence[str] = (), frames: int = 4, min_side: int = 64
) -> Path:
    """Write a PNG with a row per prompt and, below each label, `frames` evenly spaced frames of that column's video.

    Frames are enlarged without smoothing until both sides have `min_side` pixels. Returns the path.

    Raises:
        ValueError: columns or captions of different lengths, or no video at all.
        ConfigError: a file cannot be read.
    """
    picture = sheet.contact_sheet(_rows(columns), list(columns), captions, frames, min_side)
    data = encode_png(picture)
    write_atomic(Path(path), lambda file: file.write_bytes(data))
    return Path(path)


def write_side_by_side(
    path: str | Path, columns: Mapping[str, Sequence[Video]], fps: float, captions: Sequence[str] = (), min_side: int = 64
) -> Path:
    """Write one mp4 that plays all videos in step, a row per prompt and a labelled column per cell; arguments as above."""
    frames = sheet.grid(_rows(columns), list(columns), captions, min_side)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    video.write_mp4(path, frames, fps, min_side=1)
    return Path(path)


def encode_png(picture: Image, limit: int = PNG_LIMIT) -> bytes:
    """PNG bytes; a picture that would be larger than `limit` bytes gets a palette of 256, then of 64 colours."""
    data = _png(picture)
    for colours in (256, 64):
        if len(data) <= limit:
            break
        data = _png(picture.quantize(colours))
    return data


def _png(picture: Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _rows(columns: Mapping[str, Sequence[Video]]) -> list[list[np.ndarray | None]]:
    """Columns of videos turned into rows, files read."""
    lengths = {label: len(videos) for label, videos in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns must hold one video per prompt, None for a missing one; they hold {lengths}")
    return [[video.read(v) if isinstance(v, str | Path) else v for v in row] for row in zip(*columns.values(), strict=True)]
