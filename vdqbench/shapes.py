"""The shapes videos: a procedural captioned video set, deterministic by (seed, index).

A video is 16 frames of 32x32 RGB: one coloured shape in one of six motions over one of three backgrounds. The minis
and their evaluators are trained on the `train` scenes; prompts of the `calib` and `eval` scenes are never trained on.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from itertools import product

import numpy as np

FRAMES, SIZE, FPS = 16, 32, 8
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.15, 0.30, 0.95),
    "yellow": (0.95, 0.88, 0.10),
    "magenta": (0.85, 0.15, 0.85),
    "cyan": (0.10, 0.85, 0.88),
}
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUNDS = ("dark", "light", "striped")
MOTIONS = {
    "left": "moving left",
    "right": "moving right",
    "up": "moving up",
    "down": "moving down",
    "growing": "growing",
    "shrinking": "shrinking",
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "background": BACKGROUNDS,
    "motion": tuple(MOTIONS),
}
SPLITS = {"eval": slice(0, 128), "calib": slice(128, 138), "train": slice(138, None)}


@dataclass(frozen=True)
class Scene:
    """What a shapes video shows; `caption` and `from_caption` are inverse to each other."""

    colour: str
    shape: str
    background: str
    motion: str

    @property
    def caption(self) -> str:
        return f"a {self.colour} {self.shape} {MOTIONS[self.motion]} on a {self.background} background"

    @property
    def labels(self) -> tuple[int, ...]:
        """Class index of each attribute, in the order of `ATTRIBUTES`."""
        return tuple(names.index(value) for names, value in zip(ATTRIBUTES.values(), astuple(self), strict=True))

    @classmethod
    def from_caption(cls, caption: str) -> Scene:
        """Raises ValueError if the caption is not one that `caption` writes."""
        words = caption.split()
        found = [next((name for name in names if name in words), "") for names in ATTRIBUTES.values()]
        if "" not in found and (scene := cls(*found)).caption == caption:
            return scene
        raise ValueError(f"not a caption of a shapes video: {caption!r}")


def uniform(seed: int, index: np.ndarray, stream: int) -> np.ndarray:
    """Counter-based uniform numbers in [0, 1): the splitmix64 finaliser of (seed, index, stream), elementwise."""
    with np.errstate(over="ignore"):
        z = np.asarray(index, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = z + np.uint64(seed % 2**64) * np.uint64(0xD1B54A32D192ED03) + np.uint64(stream) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scenes(split: str) -> list[Scene]:
    """All scenes of one split (`train`, `calib`, `eval`), disjoint from the others, in a fixed shuffled order."""
    every = [Scene(*values) for values in product(*ATTRIBUTES.values())]
    order = np.argsort(uniform(0, np.arange(len(every)), 0), kind="stable")
    return [every[i] for i in order][SPLITS[split]]


def render(chosen: list[Scene], seed: int, index: np.ndarray, frames: int = FRAMES) -> np.ndarray:
    """Videos uint8 [N, frames, SIZE, SIZE, 3] of the N chosen scenes; video n depends on (chosen[n], seed, index[n], frames) alone.

    The same motion is shown in any number of frames.
    """
    colour, shape, background, motion = np.array([scene.labels for scene in chosen]).T
    index = np.asarray(index)
    u = [uniform(seed, index, stream)[:, None].astype(np.float32) for stream in range(1, 6)]
    progress = np.linspace(-1, 1, frames, dtype=np.float32)
    name = np.array(list(MOTIONS))[motion]
    step = (np.isin(name, ["right", "down"]) * 1.0 - np.isin(name, ["left", "up"]))[:, None].astype(np.float32)
    travel = (7 + 2 * u[0]) * step * progress
    jitter_x, jitter_y = 8 * u[1] - 4, 8 * u[2] - 4
    sideways, upright = np.isin(name, ["left", "right"])[:, None], np.isin(name, ["up", "down"])[:, None]
    x = SIZE / 2 - 0.5 + np.where(sideways, travel, jitter_x)
    y = SIZE / 2 - 0.5 + np.where(upright, travel, jitter_y)
    size = ((name == "growing") * 1.0 - (name == "shrinking"))[:, None].astype(np.float32)
    radius = np.where(size != 0, 6 + 3.2 * size * progress, 5 + 1.5 * u[3])

    grid = np.arange(SIZE, dtype=np.float32)
    dx = grid[None, None, None, :] - x[:, :, None, None]
    dy = grid[None, None, :, None] - y[:, :, None, None]
    distance = np.empty((len(chosen), frames, SIZE, SIZE), np.float32)
    for k, signed_distance in enumerate((_circle, _square, _triangle, _cross)):
        where = shape == k
        distance[where] = signed_distance(dx[where], dy[where], radius[where][:, :, None, None])
    cover = np.clip(0.5 - distance, 0, 1)[..., None]

    paint = np.array(list(COLOURS.values()), np.float32)[colour][:, None, None, None, :]
    pixels = cover * paint + (1 - cover) * _background(background, u[4][:, 0])[:, None]
    return (pixels * 255 + 0.5).astype(np.uint8)


def dataset(split: str, seed: int, index: np.ndarray, frames: int = FRAMES) -> tuple[np.ndarray, list[Scene]]:
    """Videos uint8 [N, frames, SIZE, SIZE, 3] and their scenes, each drawn from the split by (seed, index)."""
    pool = scenes(split)
    chosen = [pool[int(v * len(pool))] for v in uniform(seed, index, 0)]
    return render(chosen, seed, index, frames), chosen


def _circle(dx, dy, r):
    return np.sqrt(dx * dx + dy * dy) - r


def _square(dx, dy, r):
    return np.maximum(np.abs(dx), np.abs(dy)) - 0.9 * r


def _triangle(dx, dy, r):
    return np.maximum(np.abs(dx) * 0.894 - (dy + 1.1 * r) * 0.447, dy - 0.9 * r)


def _cross(dx, dy, r):
    wide, thin = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
    return np.maximum(wide - 1.1 * r, thin - 0.33 * r)


def _background(kind: np.ndarray, u: np.ndarray) -> np.ndarray:
    """[N, SIZE, SIZE, 3]: dark and light are flat with a little variation, striped alternates four-pixel columns."""
    stripes = np.where(np.arange(SIZE) // 4 % 2 == 0, 0.28, 0.52)
    level = np.where((kind == 0)[:, None], 0.06 + 0.06 * u[:, None], 0.78 + 0.08 * u[:, None])
    level = np.where((kind == 2)[:, None], stripes[None], np.broadcast_to(level, (len(kind), SIZE)))
    return np.broadcast_to(level[:, None, :, None], (len(kind), SIZE, SIZE, 3)).astype(np.float32)
