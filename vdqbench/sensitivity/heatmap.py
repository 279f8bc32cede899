"""A heat map as a picture: one panel beside the other, rows and columns named, the scale below."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

Values = Mapping[tuple[str, str], float]
INK, PAPER, MISSING = (20, 20, 20), (255, 255, 255), (225, 225, 225)
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Five colours of viridis, even in lightness."""
SIDE, GAP, LINE, SIZE = 34, 24, 18, 13


def heat_map(panels: Mapping[str, Values], rows: Sequence[str], columns: Sequence[str], title: str, logarithmic: bool) -> Image.Image:
    """A picture RGB.

    Args:
        panels: values by (row, column), under the panel's heading; what is missing is grey, and so is 0 on a logarithmic scale.

    Raises:
        ValueError: there is nothing to show.
    """
    from PIL import Image, ImageDraw, ImageFont

    seen = [value for panel in panels.values() for value in panel.values() if _shown(value, logarithmic)]
    if not seen or not rows or not columns:
        raise ValueError("a heat map needs at least one value, row and column")
    low, high = min(seen), max(seen)
    font = ImageFont.load_default(size=SIZE)
    left = GAP + int(max(font.getlength(row) for row in rows)) + 8
    wide = max(SIDE, int(max(font.getlength(column) for column in columns)) + 6)
    across = max(wide * len(columns), int(max(font.getlength(panel) for panel in panels)))
    width = max(left + len(panels) * (across + GAP), GAP * 2 + int(font.getlength(title)), 420)
    top = GAP + LINE * 3
    picture = Image.new("RGB", (width, top + SIDE * len(rows) + LINE * 3 + GAP), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP // 2), title, INK, font)
    for i, row in enumerate(rows):
        draw.text((left - 8, top + SIDE * i + SIDE // 2), row, INK, font, anchor="rm")
    for p, (heading, values) in enumerate(panels.items()):
        x = left + p * (across + GAP)
        draw.text((x, top - LINE * 2), heading, INK, font, anchor="lm")
        for j, column in enumerate(columns):
            draw.text((x + wide * j + wide // 2, top - LINE // 2), column, INK, font, anchor="mm")
            for i, row in enumerate(rows):
                value = values.get((row, column))
                known = value is not None and _shown(value, logarithmic)
                corner = (x + wide * j, top + SIDE * i)
                fill = colour(_place(value, low, high, logarithmic)) if known and value is not None else MISSING
                draw.rectangle((*corner, corner[0] + wide - 2, corner[1] + SIDE - 2), fill)
    _legend(draw, font, (left, top + SIDE * len(rows) + LINE), low, high)
    return picture


def colour(place: float) -> tuple[int, int, int]:
    """Of a place in 0..1 on the scale."""
    at = min(max(place, 0.0), 1.0) * (len(SCALE) - 1)
    i = min(int(at), len(SCALE) - 2)
    r, g, b = (round(a + (b - a) * (at - i)) for a, b in zip(SCALE[i], SCALE[i + 1], strict=True))
    return r, g, b


def _shown(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _place(value: float, low: float, high: float, logarithmic: bool) -> float:
    if high == low:
        return 1.0
    return math.log(value / low) / math.log(high / low) if logarithmic else (value - low) / (high - low)


def _legend(draw: object, font: object, corner: tuple[int, int], low: float, high: float) -> None:
    from PIL.ImageDraw import ImageDraw

    assert isinstance(draw, ImageDraw)
    x, y = corner
    for i in range(200):
        draw.line((x + i, y, x + i, y + LINE - 4), colour(i / 199))
    draw.text((x, y + LINE), f"{low:.2g}", INK, font, anchor="la")  # type: ignore[arg-type]
    draw.text((x + 200, y + LINE), f"{high:.2g}", INK, font, anchor="ra")  # type: ignore[arg-type]
