"""Videos in and out: lossless files for metrics, small ones that play in a browser, reading those and what users bring.

A video is a file that ffmpeg decodes (through PyAV) or a folder of images, one per frame, in natural order of their names.
"""

from __future__ import annotations

import math
import os
import re
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vdqbench.errors import ConfigError

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".gif", ".webm", ".mkv", ".avi"})
IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
"""Image modes of PIL that become RGB without rescaling."""


LOSSLESS = {
    ".mkv": ("matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1"}),
    ".mp4": ("mp4", "libx264rgb", "rgb24", {"crf": "0", "x264-params": "threads=1"}),
}
"""Container, codec, pixel format and options by suffix."""


def write_lossless(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] bit-exactly; equal frames give equal bytes.

    The store's own kind is `.mkv` (FFV1 in Matroska, with checksums); `.mp4` (H.264 in RGB at quantizer 0) is for other programs.

    Raises:
        ValueError: frames of another type or shape, or another suffix.
    """
    path = Path(path)
    if path.suffix not in LOSSLESS:
        raise ValueError(f"a lossless video is named {' or '.join(path.with_suffix(suffix).name for suffix in LOSSLESS)}, not {path.name}")
    _encode(path, _checked(frames), fps, *LOSSLESS[path.suffix])


def write_mp4(path: str | Path, frames: np.ndarray, fps: float, min_side: int = 256) -> None:
    """Write frames uint8 [T, H, W, 3] as a small H.264 mp4 for eyes, never for metrics.

    Small videos are enlarged by the smallest whole factor that brings the shorter side to `min_side` pixels, without
    smoothing; an odd side gets one more row or column, because yuv420p needs even ones.

    Raises:
        ValueError: frames of another type or shape.
    """
    frames = enlarge(_checked(frames), min_side)
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    options = {"crf": "18", "preset": "medium", "x264-params": "threads=1"}
    _encode(Path(path), frames, fps, "mp4", "libx264", "yuv420p", options)


def read(path: str | Path) -> np.ndarray:
    """All frames of a video file or of a folder of images, uint8 RGB [T, H, W, 3]; transparency is dropped.

    Raises:
        ConfigError: it is missing, cannot be decoded to its end, has no frame, or has frames of several sizes.
    """
    if Path(path).is_dir():
        return _read_images(Path(path))
    import av

    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            expected, decoded = stream.frames, list(container.decode(stream))
            corrupt = sum(frame.is_corrupt for frame in decoded)
            frames = [frame.to_ndarray(format="rgb24") for frame in decoded]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ConfigError(f"video {path} cannot be read ({error}); expected an existing file that ffmpeg can decode") from error
    if not frames:
        raise ConfigError(f"video {path} has no frame; expected at least one")
    if corrupt or len(frames) < expected:
        good, whole = len(frames) - corrupt, max(len(frames), expected)
        raise ConfigError(f"video {path} is damaged: {good} of its {whole} frames can be decoded; give a whole file")
    return _same_size(frames, path)


def _read_images(folder: Path) -> np.ndarray:
    frames = [read_image(file) for file in images(folder)]
    if not frames:
        raise ConfigError(f"video {folder} has no frame; expected a folder with images ({', '.join(sorted(IMAGES))})")
    return _same_size(frames, folder)


def read_image(path: str | Path) -> np.ndarray:
    """An image, uint8 RGB [H, W, 3]; transparency is dropped.

    Raises:
        ConfigError: it cannot be read, or has more than 8 bits per channel.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.mode not in EIGHT_BIT:
                raise ConfigError(f"frame {path} has pixels of mode {image.mode}; convert it to 8 bits per channel")
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ConfigError(f"frame {path} cannot be read ({error}); expected an image such as png or jpg") from error


def _same_size(frames: list[np.ndarray], path: str | Path) -> np.ndarray:
    sizes = sorted({frame.shape[:2] for frame in frames})
    if len(sizes) > 1:
        named = ", ".join(f"{height}x{width}" for height, width in sizes)
        raise ConfigError(f"video {path} has frames of several sizes ({named}); all frames of a video must have one size")
    return np.stack(frames)


def images(folder: Path) -> list[Path]:
    """The images in a folder, in natural order: frame2 before frame10."""
    return sorted((file for file in folder.iterdir() if _is_visible(file) and file.suffix.lower() in IMAGES), key=natural)


def listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The videos in a folder, in natural order, and everything else in it that is not hidden.

    Videos are files with one of the suffixes `SUFFIXES` and folders with images in them.
    """
    found: list[Path] = []
    others: list[Path] = []
    for path in sorted((path for path in folder.iterdir() if _is_visible(path)), key=natural):
        is_video = bool(images(path)) if path.is_dir() else path.suffix.lower() in SUFFIXES
        (found if is_video else others).append(path)
    return found, others


def natural(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sorting key that orders numbers in names by value; ties by the name itself."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part], path.name


def _is_visible(path: Path) -> bool:
    return not path.name.startswith(".")


def enlarge(frames: np.ndarray, min_side: int) -> np.ndarray:
    """Frames [..., H, W, 3] repeated pixel by pixel by the smallest whole factor that makes both sides >= `min_side`."""
    factor = max(1, math.ceil(min_side / min(frames.shape[-3:-1])))
    return frames.repeat(factor, axis=-3).repeat(factor, axis=-2)


def _checked(frames: np.ndarray) -> np.ndarray:
    if not (isinstance(frames, np.ndarray) and frames.dtype == np.uint8 and frames.ndim == 4 and frames.shape[-1] == 3 and frames.size):
        kind = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"frames must be a uint8 array [T, H, W, 3] with at least one frame, got {kind}")
    return np.ascontiguousarray(frames)


def _encode(path: Path, frames: np.ndarray, fps: float, container: str, codec: str, pixels: str, options: dict[str, str]) -> None:
    """Encode into a temporary file beside `path` and move it there, so that nobody ever sees half a video."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    name = str(path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp"))
    try:
        muxer = {"fflags": "+bitexact", **({"movflags": "+faststart"} if container == "mp4" else {})}
        with av.open(name, "w", format=container, options=muxer) as output:
            stream: Any = output.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options={"flags": "+bitexact", **options})
            stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode())
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
