"""Videos side by side for eyes: one video made of many (`grid`), or one picture of some frames of each (`contact_sheet`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vdqbench.video import enlarge

if TYPE_CHECKING:
    from PIL import Image

BACKGROUND, INK, MISSING = (255, 255, 255), (20, 20, 20), (208, 208, 208)
GAP = 8


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    captions: Sequence[str] = (),
    frames: int = 4,
    min_side: int = 64,
) -> Image.Image:
    """A picture with a row of videos per prompt; of each video, `frames` evenly spaced frames stand side by side.

    Args:
        rows: videos uint8 [T, H, W, 3]; None is drawn as a grey field marked `missing`.
        columns: a heading for each video of a row.
        captions: a line of text above each row, or none at all.
        frames: frames shown of each video, the first and the last among them.
        min_side: smaller frames are enlarged to at least this many pixels, by a whole factor.

    Raises:
        ValueError: rows, headings and captions that do not fit each other, or no video at all.
    """
    height, width, _ = _extent(rows, columns, captions)
    strips = [
        [None if video is None else np.concatenate(list(video[_spaced(len(video), frames)]), axis=1) for video in row] for row in rows
    ]
    return _picture(strips, columns, captions, (height, width * frames), max(1, -(-min_side // min(height, width))))


def grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    columns: Sequence[str],
    captions: Sequence[str] = (),
    min_side: int = 64,
) -> np.ndarray:
    """One video uint8 [T, H, W, 3] that plays all videos beside each other; shorter ones hold their last frame.

    Arguments and errors as of `contact_sheet`.
    """
    height, width, length = _extent(rows, columns, captions)
    factor = max(1, -(-min_side // min(height, width)))
    moments = []
    for t in range(length):
        stills = [[None if video is None else video[min(t, len(video) - 1)] for video in row] for row in rows]
        moments.append(np.asarray(_picture(stills, columns, captions, (height, width), factor)))
    return np.stack(moments)


def _spaced(length: int, count: int) -> np.ndarray:
    return np.linspace(0, length - 1, count).round().astype(int)


def _extent(rows: Sequence[Sequence[np.ndarray | None]], columns: Sequence[str], captions: Sequence[str]) -> tuple[int, int, int]:
    """Largest height, width and length of the videos."""
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} videos, one per heading ({', '.join(columns)}); use None for a missing one")
    if captions and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions do not fit {len(rows)} rows")
    shapes = [video.shape for row in rows for video in row if video is not None]
    if not shapes:
        raise ValueError("there is no video to show; give at least one")
    return max(s[1] for s in shapes), max(s[2] for s in shapes), max(s[0] for s in shapes)


def _picture(
    stills: Sequence[Sequence[np.ndarray | None]], columns: Sequence[str], captions: Sequence[str], size: tuple[int, int], factor: int
) -> Image.Image:
    """Stills uint8 [h, w, 3], none larger than `size` (height, width), enlarged by `factor` and set under their headings."""
    from PIL import Image, ImageDraw, ImageFont

    height, width = size[0] * factor, size[1] * factor
    font = ImageFont.load_default(size=13)
    line = 18
    step = height + GAP + (line if captions else 0)
    canvas = Image.new("RGB", (GAP + len(columns) * (width + GAP), GAP + line + len(stills) * step), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for x, heading in zip(range(GAP, canvas.width, width + GAP), columns, strict=True):
        draw.text((x, GAP // 2), heading, fill=INK, font=font)
    for i, row in enumerate(stills):
        y = GAP + line + i * step
        if captions:
            draw.text((GAP, y - 2), captions[i], fill=INK, font=font)
            y += line
        for x, still in zip(range(GAP, canvas.width, width + GAP), row, strict=True):
            if still is None:
                draw.rectangle((x, y, x + width - 1, y + height - 1), fill=MISSING)
                draw.text((x + 4, y + 4), "missing", fill=INK, font=font)
            else:
                canvas.paste(Image.fromarray(enlarge(still, factor * min(still.shape[:2]))), (x, y))
    return canvas
