"""Graded distortions of videos: what the minis' quality network is trained on and what every evaluator is validated with.

Each is a pure function `fn(video, severity, rng) -> video` on uint8 [T, H, W, 3] with a severity in 0..1; 0 gives the video back.
The random numbers drawn do not depend on the severity, so that equal seeds give the same distortion, only stronger. Sizes are
relative to the frame's height where that is what an eye sees.

Three kinds: `TECHNICAL` ones damage the signal, `AESTHETIC` ones the colours, and `SEMANTIC` ones leave every frame intact and show
something else than was asked for. Of the last, the full severity of `colour_swap` and `wrong_motion` is again a possible video of
the set, only with another caption: metrics that see captions or references must fall with it, a distance between sets need not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Distortion = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def noise(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """White Gaussian noise with a standard deviation of up to 64 levels."""
    field = rng.standard_normal(video.shape, dtype=np.float32)
    return to_uint8(video + 64 * checked(severity) * field)


def blotches(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Coloured noise of an eighth of the frame in size, up to 48 levels: what an autoencoder makes of wrong latents."""
    frames, height, width = video.shape[:3]
    coarse = rng.standard_normal((frames, 8, 8, 3), dtype=np.float32)
    field = coarse[:, _spread(height, 8)][:, :, _spread(width, 8)]
    return to_uint8(video + checked(severity) * 48 * _blurred(field, height / 16))


def blur(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian blur with a standard deviation of up to 7 % of the frame's height."""
    return to_uint8(_blurred(video.astype(np.float32), 0.07 * checked(severity) * video.shape[1]))


def blockiness(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fades each block of a sixth of the frame's height into its mean (a grid that the shapes videos' stripes do not lie on)."""
    side = max(2, round(video.shape[1] / 6))
    means = video.astype(np.float32)
    for axis in (1, 2):
        starts = np.arange(0, video.shape[axis], side)
        lengths = np.diff([*starts, video.shape[axis]])
        sums = np.add.reduceat(means, starts, axis=axis)
        shape = [1] * 4
        shape[axis] = -1
        means = np.repeat(sums / lengths.reshape(shape).astype(np.float32), lengths, axis=axis)
    return _faded(video, means, severity)


def posterize(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fades every channel into the nearest of three levels (0, 127.5, 255)."""
    return _faded(video, np.rint(video / np.float32(127.5)) * np.float32(127.5), severity)


def saturation(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fades the colours into grey of the same luma; a grey video stays as it is."""
    return _faded(video, np.broadcast_to((video @ LUMA)[..., None], video.shape), severity)


def contrast(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fades the video into middle grey."""
    return _faded(video, np.float32(127.5), 0.9 * checked(severity))


def colour_cast(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Tints the whole video by up to 70 levels in a random hue."""
    phase = 2 * np.pi * (rng.random() + np.arange(3) / 3)
    return to_uint8(video + 70 * checked(severity) * np.cos(phase).astype(np.float32))


def jitter(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Displaces each frame at random, with a standard deviation of up to 9 % of its height; edges are repeated."""
    frames, height = video.shape[:2]
    shifts = rng.standard_normal((frames, 2)) * 0.09 * checked(severity) * height
    moved = [_shifted(_shifted(frame, dy, 0), dx, 1) for frame, (dy, dx) in zip(video.astype(np.float32), shifts, strict=True)]
    return to_uint8(np.stack(moved))


def flicker(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Brightens and darkens each frame at random, by a gain of up to 1 +- 0.5 (one standard deviation) and 24 levels."""
    gain, offset = rng.standard_normal((2, len(video), 1, 1, 1), dtype=np.float32)
    return to_uint8(video * (1 + 0.5 * checked(severity) * gain.clip(-2, 2)) + 24 * severity * offset)


def frame_cycle(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Moves a share `severity` of the frames, chosen at random, on in a cycle, so that none of them keeps its place.

    From two thirds on hardly any two frames that belong together are left, so that more of it is hard to see.
    """
    chosen = rng.permutation(len(video))[: round(checked(severity) * len(video))]
    shuffled = video.copy()
    if len(chosen) > 1:
        shuffled[chosen] = video[np.roll(chosen, 1)]
    return shuffled


def frame_shuffle(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Delays each frame at random by up to `severity` times the length of the video, and shows them in the order they then have.

    Weak shuffles swap neighbours, strong ones carry frames across the video, so that the jumps in it grow with the severity.
    """
    when = np.arange(len(video)) + checked(severity) * len(video) * rng.random(len(video))
    return video[np.argsort(when, kind="stable")]


def colour_swap(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Fades red, green and blue into each other in turn: at 1 red is green, green is blue, blue is red; grey stays grey."""
    return _faded(video, np.roll(video, 1, axis=-1).astype(np.float32), severity)


def wrong_motion(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Plays the video about its middle with a speed of 1 - 2 severity: at 0.5 it stands still, at 1 it runs backwards."""
    middle = (len(video) - 1) / 2
    when = middle + (1 - 2 * checked(severity)) * (np.arange(len(video)) - middle)
    return video[np.rint(when).astype(int)]


def backwards(video: np.ndarray, severity: float, rng: np.random.Generator) -> np.ndarray:
    """Plays the whole video backwards with a probability of `severity`: wrong motion graded by its share of a set."""
    return video[::-1].copy() if rng.random() < checked(severity) else video.copy()


TECHNICAL: dict[str, Distortion] = {
    "noise": noise,
    "blotches": blotches,
    "blur": blur,
    "blockiness": blockiness,
    "jitter": jitter,
    "flicker": flicker,
    "frame_cycle": frame_cycle,
    "frame_shuffle": frame_shuffle,
}
AESTHETIC: dict[str, Distortion] = {
    "posterize": posterize,
    "saturation": saturation,
    "contrast": contrast,
    "colour_cast": colour_cast,
}
SEMANTIC: dict[str, Distortion] = {
    "colour_swap": colour_swap,
    "wrong_motion": wrong_motion,
    "backwards": backwards,
}
DISTORTIONS: dict[str, Distortion] = {**TECHNICAL, **AESTHETIC, **SEMANTIC}


def checked(severity: float) -> float:
    """The severity itself.

    Raises:
        ValueError: it is not in 0..1.
    """
    if not 0 <= severity <= 1:
        raise ValueError(f"severity={severity} must be in 0..1, where 0 is the undistorted video")
    return float(severity)


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Levels rounded to the nearest and limited to 0..255."""
    return np.rint(levels).clip(0, 255).astype(np.uint8)


def _faded(video: np.ndarray, target: np.ndarray | np.float32, severity: float) -> np.ndarray:
    return to_uint8(video + np.float32(checked(severity)) * (target - video.astype(np.float32)))


def _spread(length: int, parts: int) -> np.ndarray:
    """For each of `length` pixels, which of `parts` equal parts it lies in."""
    return np.arange(length) * parts // length


def _blurred(levels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur over height and width of [T, H, W, 3]; edges are repeated."""
    for axis in (1, 2):
        levels = np.moveaxis(np.tensordot(_filter(levels.shape[axis], sigma), levels, axes=(1, axis)), 0, axis)
    return levels


def _filter(length: int, sigma: float) -> np.ndarray:
    """Matrix [length, length] of a Gaussian blur whose part beyond the edges falls on the outermost pixels."""
    if sigma < 1e-3:
        return np.eye(length, dtype=np.float32)
    reach = int(np.ceil(4 * sigma))
    offsets = np.arange(-reach, reach + 1)
    weight = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((length, length))
    rows = np.arange(length)[:, None].repeat(len(offsets), axis=1)
    np.add.at(matrix, (rows, (rows + offsets).clip(0, length - 1)), weight / weight.sum())
    return matrix.astype(np.float32)


def _shifted(frame: np.ndarray, by: float, axis: int) -> np.ndarray:
    """The frame displaced by a fraction of pixels along an axis, linearly interpolated; edges are repeated."""
    length = frame.shape[axis]
    where = (np.arange(length) - by).clip(0, length - 1)
    low = np.floor(where).astype(int)
    high = np.minimum(low + 1, length - 1)
    shape = [1] * frame.ndim
    shape[axis] = -1
    share = (where - low).astype(np.float32).reshape(shape)
    return frame.take(low, axis) * (1 - share) + frame.take(high, axis) * share
