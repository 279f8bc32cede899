"""What a user gives for a video: an image of a person, and the poses of its frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vdqbench import video
from vdqbench.errors import ConfigError
from vdqbench.models.base import Job

WINDOW = 16
"""Frames that the original denoises at once; of longer videos it averages overlapping windows."""


@dataclass(frozen=True)
class Pictures:
    """Of one video: `image` [3, H, W] and `pose` [F, 3, H, W], uint8."""

    image: Tensor
    pose: Tensor

    @classmethod
    def of(cls, job: Job, frames: int, height: int, width: int) -> Pictures:
        """Read and, as in the original, resized without keeping the ratio of sides.

        Raises:
            ConfigError: one is missing or cannot be read, or the poses are more or fewer than frames.
        """
        for name in ("image", "pose"):
            if name not in job.inputs:
                raise ConfigError(f"prompt {job.prompt_id} comes without its {name}; give one for each prompt as prompts.inputs.{name}")
        poses = video.read(job.inputs["pose"])
        if len(poses) != frames:
            fix = f"give as many, or set model.call.num_frames={len(poses)}"
            if len(poses) > WINDOW:
                fix = f"cut it to as many, since windows, which the original averages for more than {WINDOW}, are not supported"
            raise ConfigError(f"pose {job.inputs['pose']} has {len(poses)} frames where model.call.num_frames={frames}; {fix}")
        image = _resized(video.read_image(job.inputs["image"]), height, width)
        return cls(image, torch.stack([_resized(pose, height, width) for pose in poses]))


def _resized(picture: np.ndarray, height: int, width: int) -> Tensor:
    if picture.shape[:2] != (height, width):
        picture = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)
