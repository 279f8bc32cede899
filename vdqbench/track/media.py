"""Videos beside each other, small enough to send: a cell beside its reference, the rows of a table group by group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdqbench import video
from vdqbench.record import Record, Sample
from vdqbench.report import grid
from vdqbench.store import write_atomic

SIDE = 128
"""Shorter side, in pixels, that a video is brought down to in a grid."""
PROMPTS = 4
"""Videos of each cell in a grid."""
MOST = 6
"""Cells beside each other in a grid."""


def playing(record: Record, folder: Path) -> dict[Sample, Path]:
    """The mp4 files of a record that are there, by sample."""
    files = {(str(v["prompt_id"]), int(v["seed"])): folder / v["mp4"] for v in record.videos if v.get("mp4")}
    return {sample: file for sample, file in files.items() if file.is_file()}


def side_by_side(path: Path, cells: Mapping[str, tuple[Record, Path]]) -> Path | None:
    """Write one mp4 with a labelled column for each cell and a row for each of the first prompts; None if no video is there.

    A cell without a sample's video has a gap in that row.
    """
    rows = _samples(cells)
    if not rows:
        return None
    columns = _columns(cells, rows)
    first = next(file for record, folder in cells.values() for file in playing(record, folder).values())
    return grid.write_side_by_side(path, columns, frames_per_second(first), _captions(cells, rows), min_side=1)


def contact_sheet(path: Path, cells: Mapping[str, tuple[Record, Path]]) -> Path:
    """The same as a PNG with two frames of each video.

    Raises:
        ValueError: there is no video.
    """
    rows = _samples(cells)
    return grid.write_contact_sheet(path, _columns(cells, rows), _captions(cells, rows), frames=2, min_side=1)


def same_size(paths: Sequence[Path]) -> None:
    """Give pictures white borders, right and below, up to the largest of them: wandb shows only equal ones as one list."""
    from PIL import Image

    pictures = [Image.open(path).convert("RGB") for path in paths]
    size = (max(picture.width for picture in pictures), max(picture.height for picture in pictures))
    for path, picture in zip(paths, pictures, strict=True):
        if picture.size != size:
            canvas = Image.new("RGB", size, "white")
            canvas.paste(picture)
            data = grid.encode_png(canvas)
            write_atomic(path, lambda file, data=data: file.write_bytes(data))  # type: ignore[misc]


def groups(rows: Iterable[tuple[str | None, str, Any]], reference: tuple[str, Any] | None) -> dict[str, dict[str, Any]]:
    """(group, label, cell) as the columns of one grid per group, the reference first in each, at most MOST columns in all."""
    found: dict[str, dict[str, Any]] = {}
    for group, label, cell in rows:
        columns = found.setdefault(group or "all", dict([reference] if reference else []))
        if len(columns) < MOST:
            columns[label] = cell
    return found


def frames_per_second(path: Path) -> float:
    """Of a video file."""
    import av

    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate or 8)


def smaller(frames: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] averaged over squares of pixels, so that the shorter side is not much more than `side`."""
    from PIL import Image

    factor = min(frames.shape[1:3]) // side
    return frames if factor < 2 else np.stack([np.asarray(Image.fromarray(frame).reduce(factor)) for frame in frames])


def _samples(cells: Mapping[str, tuple[Record, Path]]) -> list[Sample]:
    """The first samples of which some cell has a video."""
    return list(dict.fromkeys(sample for record, folder in cells.values() for sample in playing(record, folder)))[:PROMPTS]


def _columns(cells: Mapping[str, tuple[Record, Path]], rows: Sequence[Sample]) -> dict[str, list[np.ndarray | None]]:
    columns = {}
    for label, (record, folder) in cells.items():
        files = playing(record, folder)
        columns[label] = [smaller(video.read(files[sample])) if sample in files else None for sample in rows]
    return columns


def _captions(cells: Mapping[str, tuple[Record, Path]], rows: Sequence[Sample]) -> list[str]:
    texts = {(str(v["prompt_id"]), int(v["seed"])): v["prompt"] for record, _ in cells.values() for v in record.videos}
    return [texts[sample] for sample in rows]
