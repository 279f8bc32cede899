"""Pipelines of diffusers that are given what they would otherwise make themselves: the device, the noise, frames for a control network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def given(kind: Any) -> Any:
    """A pipeline class whose instances are told more.

    They have `told_device` (parts that are not loaded are on the meta device, so theirs is not to be asked for) and `told_noise`,
    which gives standard normal noise [B, ...] for its sizes. What else `prepare_latents` does, scaling above all, it does.
    """
    signature = inspect.signature(kind.prepare_latents)

    class Given(kind):
        told_device: torch.device
        told_noise: Callable[[torch.Size], Tensor]

        @property
        def _execution_device(self) -> torch.device:
            return self.told_device

        def prepare_latents(self, *args: Any, **kwargs: Any) -> Tensor:
            asked = signature.bind(self, *args, **kwargs).arguments
            made = kind.prepare_latents(**{**asked, "device": "meta", "generator": None, "latents": None})
            return kind.prepare_latents(**{**asked, "latents": self.told_noise(made.shape).to(asked["dtype"])})

    return Given


@cache
def given_control(kind: Any) -> Any:
    """The same of a pipeline with a control network, whose frames have been prepared by `control_frames`, one set for each video."""

    class GivenControl(given(kind)):  # type: ignore[misc]
        def control_frames(self, images: list[Any], height: int, width: int, dtype: torch.dtype) -> Tensor:
            """What the control network is told of some images, [C, N, H, W]."""
            with torch.random.fork_rng(devices=[]):  # where an autoencoder makes it, it draws
                torch.manual_seed(0)
                return kind.prepare_image(self, images, width, height, self.told_device, dtype)[0]

        def prepare_image(self, frames: Tensor, width: int, height: int, device: Any, dtype: torch.dtype) -> Tensor:
            rows = torch.cat([frames, frames]) if self.do_classifier_free_guidance else frames
            return rows.to(device, dtype)

    return GivenControl
