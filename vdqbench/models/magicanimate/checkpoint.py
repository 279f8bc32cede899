"""The released checkpoints: names of the motion modules' tensors in diffusers' UNet, and weights put into networks that must fit them."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from safetensors.torch import load_file
from torch import Tensor

from vdqbench.errors import ConfigError

PREFIX = re.compile(r"(?:module\.)?(?:unet\.)?")
"""What a name may begin with, which says only how the network was wrapped when it was saved."""
MODULE = ".motion_modules."
"""Part of the name of every tensor of a motion module and of no other tensor, in the released files as in diffusers' UNet."""
MOTION_TENSOR = re.compile(r"(\w+\.[\w.]*motion_modules\.\d+)\.temporal_transformer\.(.+)")
"""Name of a motion module's tensor: the module, as diffusers calls it, and what the tensor is called below it."""
RENAMED = (
    (r"attention_blocks\.0\.", "attn1."),
    (r"attention_blocks\.1\.", "attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
)
"""What is called otherwise below a motion module: patterns of the released names, and diffusers' names."""
POSITIONS = ".pos_encoder.pe"
"""How the released name of a table of positions ends, [1, length, C], of which each attention has one."""
TABLE = "pos_embed.pe"
"""How diffusers' name of it ends, which has one for each block, computed by the same formula."""
ROUNDING = 5e-4
"""How far a table may be from the sines: twice what float16 changes of a value of at most 1 (2^-12); bfloat16 changes more (2^-9)."""
RELEASED = "give the file that was released, and the config.json beside it"
WHOLE = "give the UNet whole, or its motion modules alone, which take the rest from Stable Diffusion 1.5"
"""What to do about a checkpoint that does not fit."""


def read(path: Path) -> dict[str, Tensor]:
    """Tensors of a checkpoint by name, mapped into memory where its format allows it; nothing in the file is run.

    Raises:
        ConfigError: it cannot be read, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise ConfigError(f"{path} cannot be read as a checkpoint ({said}); fetch the released file again and put it there") from error
    saved = saved if isinstance(saved, Mapping) else {}
    saved = saved.get("state_dict", saved)
    return {name: value for name, value in saved.items() if isinstance(value, Tensor)}


def motion_tensors(saved: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of motion modules by their names in diffusers' UNet, without their tables of positions, which must be the usual ones.

    Args:
        saved: tensors by their released names without prefix; those of no motion module are left out.
        path: of the file, for errors.

    Raises:
        ConfigError: a motion module's tensor has another name than the released ones have, or a table of positions is another one.
    """
    made = {}
    for name, value in saved.items():
        if MODULE not in name:
            continue
        if (match := MOTION_TENSOR.fullmatch(name)) is None:
            raise ConfigError(
                f"{path} has {name}, which is of a motion module and not named as in the original (MODULE.temporal_transformer.NAME); "
                "give temporal_attention.ckpt as it was released"
            )
        module, inner = match.groups()
        if inner.endswith(POSITIONS):
            _check_positions(name, value, path)
            continue
        for old, new in RENAMED:
            inner = re.sub(old, new, inner)
        made[f"{module}.{inner}"] = value
    return made


def positions(length: int, channels: int) -> Tensor:
    """Sines and cosines of positions, [1, length, channels], as diffusers makes them."""
    made: Any = SinusoidalPositionalEmbedding(channels, max_seq_length=length)
    return made.pe


def fill(network: Any, path: Path) -> None:
    """Give a network on the meta device the weights of a checkpoint.

    Raises:
        ConfigError: names or shapes are not exactly those of the network.
    """
    state = read(path)
    check(network.state_dict(), state, path, RELEASED)
    network.load_state_dict(state, assign=True)


def fill_animation(unet: Any, images: Path, animation: Path) -> None:
    """Give the UNet of videos on the meta device its weights; its positions are computed.

    As in the original, what the checkpoint of the animation holds is what counts. Its spatial half is read from the file of images only
    if it holds none, since the whole UNet may be in it or the motion modules alone.

    Args:
        unet: an `AnimationUNet`.
        images: weights of Stable Diffusion's UNet, by diffusers' names; need not exist if they are not read.
        animation: the motion modules, all of them, with the spatial half or without; names may begin with `module.`, `unet.` or both.

    Raises:
        ConfigError: names or shapes are not exactly those of one of the halves, of which the spatial one may be missing altogether.
    """
    wanted = unet.state_dict()
    tables = {name: positions(*value.shape[1:]) for name, value in wanted.items() if name.endswith(TABLE)}
    moving = {name: value for name, value in wanted.items() if MODULE in name and name not in tables}
    still = {name: value for name, value in wanted.items() if MODULE not in name}
    saved = {PREFIX.sub("", name, count=1): value for name, value in read(animation).items()}
    motion = motion_tensors(saved, animation)
    check(moving, motion, animation, RELEASED)
    spatial, source, fix = {name: value for name, value in saved.items() if MODULE not in name}, animation, WHOLE
    if not spatial:
        spatial, source, fix = read(images), images, RELEASED
    check(still, spatial, source, fix)
    unet.load_state_dict(motion | spatial | tables, assign=True)


def check(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, fix: str) -> None:
    """Raises ConfigError, naming one tensor and the fix, if names or shapes of a checkpoint's tensors differ from those wanted."""
    wrong = [f"lacks {name}" for name in wanted if name not in state]
    wrong += [f"has an unknown {name}" for name in state if name not in wanted]
    wrong += [
        f"has {name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f", and differs in {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(f"{path} does not fit this network of MagicAnimate: it {sorted(wrong)[0]}{more}; {fix}")


def _check_positions(name: str, table: Tensor, path: Path) -> None:
    if table.ndim != 3 or (table.float() - positions(*table.shape[1:])).abs().max() > ROUNDING:
        raise ConfigError(
            f"{path} has other positions than sines and cosines in {name}, which this version cannot keep; "
            "give temporal_attention.ckpt as it was released, in float32 or float16"
        )
