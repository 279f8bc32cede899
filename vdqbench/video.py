"""Video files through PyAV: lossless ones for metrics, small ones that play in a browser, and reading either."""

from __future__ import annotations

import math
import os
import uuid
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vdqbench.errors import ConfigError


def write_lossless(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames uint8 [T, H, W, 3] bit-exactly (FFV1 in Matroska, `.mkv`); equal frames give equal bytes.

    Raises:
        ValueError: frames of another type or shape, or another suffix.
    """
    path = Path(path)
    if path.suffix != ".mkv":
        raise ValueError(f"a lossless video is Matroska: name it {path.with_suffix('.mkv').name}, not {path.name}")
    _encode(path, _checked(frames), fps, "matroska", "ffv1", "bgr0", {"level": "3", "slicecrc": "1"})


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
    """All frames of a video file, uint8 RGB [T, H, W, 3].

    Raises:
        ConfigError: the file is missing, is not a video, or has no frame.
    """
    import av

    try:
        with av.open(str(path)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, IndexError) as error:
        raise ConfigError(f"video {path} cannot be read ({error}); expected an existing file that ffmpeg can decode") from error
    if not frames:
        raise ConfigError(f"video {path} has no frame; expected at least one")
    return np.stack(frames)


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
