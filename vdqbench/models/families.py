"""What is particular to each of diffusers' text-to-video pipelines: what it is told, how guidance calls its denoiser, its layers' roles.

All that they have in common is in `vdqbench.models.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vdqbench.errors import ConfigError, nearest
from vdqbench.models.base import Anatomy
from vdqbench.models.roles import DIT, UNET_MOTION, Rules, after_joint_norm, after_norm, after_table, dit_anatomy, unet_motion_anatomy

Sizes = tuple[int | str, ...]
"""Sizes of a tensor: numbers, entries of the denoiser's configuration, or `tokens`, the length of the text."""


def _unchanged(pipe: Any, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
    return latents


def _as_it_is(denoiser: Any) -> None:
    pass


@dataclass(frozen=True)
class Family:
    """A pipeline class.

    Attributes:
        condition: what `encode_prompt` returns of the prompt, in its order, with sizes; by the names that the call takes it by.
        fps: usual frames per second.
        tokens: usual length of the text; None if that is up to the tokenizer.
        guidance: of `StepClock`'s layouts, the one of classifier-free guidance; `embedded` has none.
        rules, anatomy: of the denoiser.
        arranged: latents as they leave the pipeline as [B, C, T, H, W].
        packages: that diffusers needs for it besides its own: those that prompts are cleaned with it would do without, and differ.
        control: whether a second network is told frames of the video.
        on_meta: makes a denoiser that asks for values run on the meta device, which has none.
    """

    condition: Mapping[str, Sizes]
    fps: int
    tokens: int | None
    guidance: str = "batched_reversed"
    rules: Rules = DIT
    anatomy: Callable[[Any], Anatomy] = dit_anatomy
    arranged: Callable[[Any, Tensor, Mapping[str, Any]], Tensor] = _unchanged
    packages: tuple[str, ...] = ()
    control: bool = False
    on_meta: Callable[[Any], None] = _as_it_is

    @property
    def negative(self) -> tuple[str, ...]:
        """Names of the same for the negative prompt."""
        return tuple(f"negative_{name}" for name in self.condition)

    def layout(self, call: Mapping[str, Any], scale: float) -> str:
        """How the denoiser is called for each step (see `StepClock`), at a guidance scale."""
        if self.guidance == "embedded":
            return "two_pass" if call.get("true_cfg_scale", 1) > 1 else "embedded"
        return self.guidance if scale > 1 else "embedded"

    def blank(self, config: Mapping[str, Any], tokens: int) -> dict[str, Tensor]:
        """A condition of the right sizes that says nothing: zeros, and masks that keep everything."""
        sizes, made = {**config, "tokens": tokens}, {}
        for name, named in self.condition.items():
            shape = [one if isinstance(one, int) else sizes[one] for one in named]
            made[name] = made[f"negative_{name}"] = torch.ones(shape, dtype=torch.bool) if "mask" in name else torch.zeros(shape)
        return made


def _cogvideox_latents(pipe: Any, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Frames are in dimension 1, and some versions make more of them than asked for, in front."""
    wanted = (call["num_frames"] - 1) // pipe.vae_scale_factor_temporal + 1
    return latents[:, latents.shape[1] - wanted :].transpose(1, 2)


def _ltx_latents(pipe: Any, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Latents are rows of tokens."""
    frames = (call["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
    height, width = (call[key] // pipe.vae_spatial_compression_ratio for key in ("height", "width"))
    return pipe._unpack_latents(latents, frames, height, width, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)


class _Everything(TorchFunctionMode):
    """Without values: all elements are alike, a mask keeps everything, and its opposite nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.all:
            return torch.tensor(True)
        if func is torch.nonzero:
            return torch.arange(args[0].numel(), device="meta")[:, None]
        if func is Tensor.__getitem__ and isinstance(args[1], Tensor) and args[1].dtype == torch.bool:
            return args[0][: 0 if getattr(args[1], "opposite", False) else None]
        made = func(*args, **(kwargs or {}))
        if func in (Tensor.__invert__, torch.bitwise_not):
            made.opposite = True
        return made


def _masks_on_meta(denoiser: Any) -> None:
    """HunyuanVideo 1.5 sorts the tokens of its text by their masks, and looks whether there is an image; Mochi drops padding."""
    forward = denoiser.forward

    def without_values(*args: Any, **kwargs: Any) -> Any:
        with _Everything():
            return forward(*args, **kwargs)

    denoiser.forward = without_values


def _mochi_on_meta(denoiser: Any) -> None:
    """Its rotary embedding asks for autocast besides, which the meta device does not have."""

    def frequencies(freqs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = torch.einsum("nd,dhf->nhf", positions, freqs.float())
        return torch.cos(angles), torch.sin(angles)

    denoiser.rope._create_rope = frequencies
    _masks_on_meta(denoiser)


ANIMATEDIFF = Family(
    condition={"prompt_embeds": ("tokens", "cross_attention_dim")},
    fps=8,
    tokens=None,
    rules=UNET_MOTION,
    anatomy=unet_motion_anatomy,
)
FAMILIES = {
    "HunyuanVideoPipeline": Family(
        condition={
            "prompt_embeds": ("tokens", "text_embed_dim"),
            "pooled_prompt_embeds": ("pooled_projection_dim",),
            "prompt_attention_mask": ("tokens",),
        },
        fps=24,
        tokens=256,
        guidance="embedded",
        anatomy=partial(dit_anatomy, modulated=after_norm),
    ),
    "HunyuanVideo15Pipeline": Family(
        condition={
            "prompt_embeds": (1000, "text_embed_dim"),
            "prompt_embeds_mask": (1000,),
            "prompt_embeds_2": (256, "text_embed_2_dim"),
            "prompt_embeds_mask_2": (256,),
        },
        fps=24,
        tokens=None,
        guidance="two_pass",
        anatomy=partial(dit_anatomy, modulated=after_norm),
        on_meta=_masks_on_meta,
    ),
    "AnimateDiffPipeline": ANIMATEDIFF,
    "AnimateDiffSparseControlNetPipeline": replace(ANIMATEDIFF, control=True),
    "CogVideoXPipeline": Family(
        condition={"prompt_embeds": ("tokens", "text_embed_dim")},
        fps=8,
        tokens=226,
        anatomy=partial(dit_anatomy, modulated=after_joint_norm),
        arranged=_cogvideox_latents,
    ),
    "LattePipeline": Family(
        condition={"prompt_embeds": ("tokens", "caption_channels")},
        fps=8,
        tokens=120,
        packages=("ftfy", "bs4"),
    ),
    "LTXPipeline": Family(
        condition={"prompt_embeds": ("tokens", "caption_channels"), "prompt_attention_mask": ("tokens",)},
        fps=25,
        tokens=128,
        anatomy=partial(dit_anatomy, modulated=after_table),
        arranged=_ltx_latents,
    ),
    "MochiPipeline": Family(
        condition={"prompt_embeds": ("tokens", "text_embed_dim"), "prompt_attention_mask": ("tokens",)},
        fps=30,
        tokens=256,
        anatomy=partial(dit_anatomy, modulated=after_norm),
        on_meta=_mochi_on_meta,
    ),
    "WanPipeline": Family(
        condition={"prompt_embeds": ("tokens", "text_dim")},
        fps=16,
        tokens=512,
        guidance="two_pass",
        anatomy=partial(dit_anatomy, modulated=after_table),
        packages=("ftfy", "accelerate"),
    ),
}
"""By the name of the pipeline's class."""


def family_of(pipeline: str) -> Family:
    """Raises ConfigError for a pipeline that is none of them."""
    if pipeline not in FAMILIES:
        raise ConfigError(f"model.options.pipeline: {pipeline} is not a pipeline that can be quantized{nearest(pipeline, FAMILIES)}")
    return FAMILIES[pipeline]
