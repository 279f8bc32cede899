"""The three networks of MagicAnimate: the UNet of videos, which is quantized, and the two that tell it of appearance and poses."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from torch import Tensor, nn

from vdqbench.errors import ConfigError
from vdqbench.models.magicanimate.norms import normalize_as_original
from vdqbench.models.magicanimate.reference import Reference, ReferenceAttention, readers

STABLE_DIFFUSION = {"cross_attention_dim": 768, "sample_size": 64}
"""What differs in Stable Diffusion 1.5 from the defaults of diffusers' UNet."""
LONGEST = 24
"""Frames that the motion modules have positions for."""
HEADS = 8
"""Of the motion modules."""


class AnimationUNet(UNetMotionModel):
    """UNet of Stable Diffusion with motion modules behind its blocks, with the original's normalization and reference attention."""

    @classmethod
    def of(cls, config: Mapping[str, Any], frames: int) -> AnimationUNet:
        """Without weights, from the configuration of the UNet of images that it was made of."""
        with torch.device("meta"):
            images = _of(UNet2DConditionModel, config)
            channels, layers = images.config.block_out_channels, images.config.layers_per_block
            motion = MotionAdapter(
                channels,
                motion_layers_per_block=layers,
                motion_norm_num_groups=images.config.norm_num_groups,
                motion_num_attention_heads=HEADS,
                motion_max_seq_length=LONGEST,
                use_motion_mid_block=False,
            )
            unet: Any = cls.from_unet2d(images, motion, load_weights=False)
            normalize_as_original(unet, frames)
        seeing = {f"{name}.attn1.processor": name for name in readers(unet)}
        spatial = {name: known for name, known in unet.attn_processors.items() if ".motion_modules." not in name}
        unet.set_attn_processor(
            unet.attn_processors | {name: ReferenceAttention(seeing.get(name, ""), frames) for name in spatial},
        )
        return unet.eval().requires_grad_(False)

    def forward(  # type: ignore[override]
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        reference: Reference,
        down: Sequence[Tensor],
        mid: Tensor,
    ) -> Tensor:
        """Predicted noise [R, 4, F, H, W].

        Args:
            sample: noisy latents [R, 4, F, H, W] of B videos; R is 2 B, unconditional rows first, or B without guidance.
            timestep: of all rows.
            encoder_hidden_states: text [R, L, D].
            reference: of B videos.
            down, mid: what the ControlNet adds to features [B F, C, h, w]; in both branches.
        """
        frames = sample.shape[2]
        branches = len(sample) * frames // len(mid)
        added = [torch.cat([one] * branches) for one in (*down, mid)]
        return super().forward(  # type: ignore[misc]
            sample,
            timestep,
            encoder_hidden_states.repeat_interleave(frames, dim=0),
            cross_attention_kwargs={"reference": reference},
            down_block_additional_residuals=tuple(added[:-1]),
            mid_block_additional_residual=added[-1],
            return_dict=False,
        )[0]


class AppearanceEncoder(nn.Module):
    """UNet of Stable Diffusion that looks at the latents of a reference image; what its attentions read is its output.

    The last transformer block needs no more than its first norm, and there is nothing after it: the released checkpoint lacks the rest.

    Args:
        config: of a UNet2DConditionModel; what it says of the last block's other layers and of the output does not count.

    Attributes:
        names: of the transformer blocks whose normalized tokens are the output, as they are run.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet: Any = _of(UNet2DConditionModel, config)
        self.names = readers(self.unet)
        last = self.unet.get_submodule(self.names[-1].rsplit(".transformer_blocks.", 1)[0])
        last.transformer_blocks[-1], last.proj_out = _NormAlone(last.transformer_blocks[-1].norm1), nn.Identity()
        self.unet.conv_norm_out, self.unet.conv_out = nn.Identity(), nn.Identity()

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Reference:
        """Tokens [B, N, C] by transformer block, after its first norm; N and C are the positions and the width of its level.

        Args:
            latents: of images, [B, 4, H, W], times the autoencoder's scale, without noise.
            timestep: of all rows.
            text: [B, L, D].
        """
        seen: dict[str, Tensor] = {}
        norms = {name: self.unet.get_submodule(name).norm1 for name in self.names}
        hooks = [norm.register_forward_hook(lambda _, args, out, name=name: seen.update({name: out})) for name, norm in norms.items()]
        try:
            self.unet(latents, timestep, text)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


class _NormAlone(nn.Module):
    """What is left of a transformer block: the first norm, of tokens [B, N, C]; whatever else the block is told is not looked at."""

    def __init__(self, norm1: nn.Module) -> None:
        super().__init__()
        self.norm1 = norm1

    def forward(self, hidden_states: Tensor, **told: Any) -> Tensor:
        return self.norm1(hidden_states)


@dataclass(frozen=True)
class Architecture:
    """Configurations of the three networks; those of Stable Diffusion 1.5 unless told otherwise."""

    unet: Mapping[str, Any] = field(default_factory=lambda: STABLE_DIFFUSION)
    appearance: Mapping[str, Any] = field(default_factory=lambda: STABLE_DIFFUSION)
    control: Mapping[str, Any] = field(default_factory=lambda: {"cross_attention_dim": 768})

    @classmethod
    def of(cls, unet: Path, appearance: Path, control: Path) -> Architecture:
        """From the configuration files in their folders.

        Raises:
            ConfigError: one is missing or no JSON.
        """
        return cls(*(_config(folder / "config.json") for folder in (unet, appearance, control)))

    def animation(self, frames: int) -> AnimationUNet:
        """The UNet of videos of so many frames, without weights."""
        return AnimationUNet.of(self.unet, frames)

    def encoder(self) -> AppearanceEncoder:
        """The appearance encoder without weights."""
        with torch.device("meta"):
            return AppearanceEncoder(self.appearance).eval().requires_grad_(False)

    def controlnet(self) -> Any:
        """The ControlNet without weights."""
        with torch.device("meta"):
            return _of(ControlNetModel, self.control).eval().requires_grad_(False)


def _of(kind: Any, config: Mapping[str, Any]) -> Any:
    """A network of diffusers from a configuration, which may be of another version or a class with the same arguments."""
    known = inspect.signature(kind.__init__).parameters
    return kind.from_config({key: value for key, value in config.items() if key in known})


def _config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is missing or not JSON; it is the configuration of one of MagicAnimate's networks: put the released one there, "
            "or give the folder that holds it as model.weights=FOLDER"
        ) from error
