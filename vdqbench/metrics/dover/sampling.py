"""What DOVER looks at: which frames, and how each frame is made 224x224 for the technical and for the aesthetic branch.

The technical branch sees fragments, 7x7 cuts of 32x32 pixels at their original sharpness, put together to one frame; the aesthetic
branch sees whole frames, squashed. Where DOVER draws at random, the draws come from a generator given by the caller.

Protocol `evalcrafter` is what the numbers of the quantization papers stand on (settings `val-l1080p`). Its temporal segments have
T // 32 frames, so that the aesthetic branch sees nothing but the first frame of a video shorter than 32 frames; its technical
clips start at T // 3 and wrap around, so that 16 frames give the clips (even frames, odd frames, even frames), each frame four
times; and its fragments of frames smaller than 224 pixels are cut where they would lie in the frame before it was enlarged.
Protocol `all_frames` is this project's: every frame is seen by both branches, in order and without jumps back.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vdqbench.errors import Unsupported

Protocol = Literal["evalcrafter", "all_frames"]
PROTOCOLS: tuple[Protocol, Protocol] = ("evalcrafter", "all_frames")

GRID, FRAGMENT = 7, 32
SIDE = GRID * FRAGMENT
CLIP, INTERVAL, CLIPS = 32, 2, 3
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def segmented(total: int, segments: int, length: int, interval: int, rng: np.random.Generator) -> np.ndarray:
    """DOVER's temporal sampler: int64 [segments, length] of frames in 0..total-1.

    Each of `segments` equal parts of the video gives `length` frames, `interval` apart, from a random start if it is long enough
    and from its first frame if not; frames past the end wrap around.
    """
    part, span = total // segments, length * interval
    start = rng.integers(0, part - span, size=segments) if part > span else np.zeros(segments, np.int64)
    return (part * np.arange(segments)[:, None] + start[:, None] + interval * np.arange(length)) % total


def technical_frames(total: int, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Frames of the technical branch's clips: int64 [clips, 32].

    By `all_frames`, clips of 32 consecutive frames, spread evenly and as many as cover the video; a shorter video is one clip, slowed.
    """
    if protocol == "evalcrafter":
        return segmented(total, CLIPS, CLIP, INTERVAL, rng)
    if total <= CLIP:
        return spread(total, 1)
    clips = -(-total // CLIP)
    return np.rint(np.linspace(0, total - CLIP, clips)).astype(np.int64)[:, None] + np.arange(CLIP)


def aesthetic_frames(total: int, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Frames of the aesthetic branch's clips: int64 [clips, 32].

    By `all_frames`, each clip runs through the whole video, and there are as many as it takes to meet every frame.
    """
    if protocol == "evalcrafter":
        return segmented(total, CLIP, 1, INTERVAL, rng).T
    return spread(total, -(-total // CLIP))


def spread(total: int, clips: int) -> np.ndarray:
    """Frames [clips, 32] of clips that interleave: moment m of the 32 `clips` evenly spaced moments belongs to clip m mod clips."""
    moments = (np.arange(clips * CLIP) + 0.5) * total / (clips * CLIP)
    return moments.astype(np.int64).reshape(CLIP, clips).T


def fragment_offsets(length: int, clips: int, rng: np.random.Generator) -> np.ndarray:
    """Where in its cell each fragment lies along a side of `length` pixels: int64 [7, 7, clips], 0 in cells not larger than it."""
    room = length // GRID - FRAGMENT
    return rng.integers(0, room, size=(GRID, GRID, clips)) if room > 0 else np.zeros((GRID, GRID, clips), np.int64)


def fragments(clips: Tensor, down: np.ndarray, right: np.ndarray, sides: tuple[int, int] | None = None) -> Tensor:
    """Mosaics uint8 [C, T, 224, 224, 3] of clips uint8 [C, T, H, W, 3].

    Args:
        clips: frames of at least 32x32 pixels.
        down: offsets [7, 7, C] by row of the grid, column of the grid and clip.
        right: the same to the right.
        sides: height and width that the grid is laid over, from the top left corner; None for the frame's own.
    """
    height, width = sides or (clips.shape[2], clips.shape[3])
    mosaic = clips.new_empty(*clips.shape[:2], SIDE, SIDE, clips.shape[-1])
    for row in range(GRID):
        for column in range(GRID):
            y, x = (min(length // GRID * i, length - FRAGMENT) for length, i in ((height, row), (width, column)))
            for clip in range(len(clips)):
                top, left = y + int(down[row, column, clip]), x + int(right[row, column, clip])
                cut = clips[clip, :, top : top + FRAGMENT, left : left + FRAGMENT]
                mosaic[clip, :, row * FRAGMENT : (row + 1) * FRAGMENT, column * FRAGMENT : (column + 1) * FRAGMENT] = cut
    return mosaic


def enlarged(video: Tensor, protocol: Protocol) -> Tensor:
    """Frames uint8 [T, H, W, 3], bilinearly enlarged until both sides have 224 pixels; large ones as they are.

    By `evalcrafter` the levels are cut off and not rounded, and a side may end up one pixel short, as in the original.
    """
    height, width = video.shape[1:3]
    scale = 1 / min(height / SIDE, width / SIDE)
    if scale <= 1:
        return video
    if protocol == "evalcrafter":
        x = video.permute(3, 0, 1, 2)  # frames as channels, as in the original: another layout rounds differently before the cut
        return (F.interpolate(x / 255.0, scale_factor=scale, mode="bilinear") * 255.0).to(torch.uint8).permute(1, 2, 3, 0)
    size = [max(SIDE, round(side * scale)) for side in (height, width)]
    return F.interpolate(video.permute(0, 3, 1, 2).float(), size, mode="bilinear").round().to(torch.uint8).permute(0, 2, 3, 1)


def technical_view(video: Tensor, protocol: Protocol, seed: int) -> Tensor:
    """The technical branch's input [clips, 3, 32, 224, 224] of a video uint8 [T, H, W, 3].

    Raises:
        Unsupported: by `evalcrafter`, frames smaller than a fragment, on which the original fails.
    """
    rng = np.random.default_rng([seed, 0])
    height, width = video.shape[1:3]
    if protocol == "evalcrafter" and min(height, width) < FRAGMENT:
        raise Unsupported(
            f"vqa by protocol evalcrafter cuts fragments of {FRAGMENT}x{FRAGMENT} pixels and these frames have {height}x{width}; "
            "use metric=vqa_all_frames, which enlarges them first, or leave the score out"
        )
    frames = technical_frames(len(video), protocol, rng)
    large = enlarged(video, protocol)
    sides = (height, width) if protocol == "evalcrafter" else (large.shape[1], large.shape[2])
    down, right = (fragment_offsets(side, len(frames), rng) for side in sides)
    return normalised(fragments(large[torch.from_numpy(frames)], down, right, sides))


def aesthetic_view(video: Tensor, protocol: Protocol, seed: int, antialias: bool) -> Tensor:
    """The aesthetic branch's input [clips, 3, 32, 224, 224] of a video uint8 [T, H, W, 3]."""
    frames = aesthetic_frames(len(video), protocol, np.random.default_rng([seed, 1]))
    seen, where = np.unique(frames, return_inverse=True)
    x = video[torch.from_numpy(seen)].permute(0, 3, 1, 2).float()
    small = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=antialias).round().clamp(0, 255).permute(0, 2, 3, 1)
    return normalised(small[torch.from_numpy(where.reshape(frames.shape))])


def normalised(clips: Tensor) -> Tensor:
    """Levels [C, T, H, W, 3] in 0..255 to [C, 3, T, H, W] with ImageNet's mean and deviation."""
    mean, std = (torch.tensor(values, device=clips.device) for values in (MEAN, STD))
    return ((clips.float() - mean) / std).permute(0, 4, 1, 2, 3).contiguous()
