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

MOTION = re.compile(r"(?:module\.)?(?:unet\.)?(\w+\.[\w.]*motion_modules\.\d+)\.temporal_transformer\.(.+)")
"""A motion module's tensor: the module, as diffusers calls it, and the tensor's name below it."""
RENAMED = (
    (r"attention_blocks\.0\.", "attn1."),
    (r"attention_blocks\.1\.", "attn2."),
    (r"\.norms\.0\.", ".norm1."),
    (r"\.norms\.1\.", ".norm2."),
    (r"\.ff_norm\.", ".norm3."),
)
POSITIONS = ".pos_encoder.pe"
"""A table of positions, which each attention has; diffusers' has one for the block, computed by the same formula."""
TABLE = "pos_embed.pe"
MODULE = ".motion_modules."
"""In the names of what motion modules have."""
ROUNDING = 2e-3
"""What float16 may have changed of a sine."""


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
        raise ConfigError(f"{path} cannot be read as a checkpoint ({' '.join(str(error).split())[:160]})") from error
    saved = saved if isinstance(saved, Mapping) else {}
    saved = saved.get("state_dict", saved)
    return {name: value for name, value in saved.items() if isinstance(value, Tensor)}


def motion_tensors(saved: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Tensors of motion modules by their names in diffusers' UNet, without their tables of positions, which must be the usual ones.

    As in the original, tensors that are of no motion module are left out, and `module.` and `unet.` in front do not count.

    Raises:
        ConfigError: a table of positions is another one.
    """
    made = {}
    for name, value in saved.items():
        match = MOTION.fullmatch(name)
        if match is None:
            continue
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
    check(network.state_dict(), state, path)
    network.load_state_dict(state, assign=True)


def fill_animation(unet: Any, images: Path, motion: Path) -> None:
    """Give the UNet of videos on the meta device the weights of a UNet of images and of motion modules; its positions are computed.

    Raises:
        ConfigError: names or shapes are not exactly those of its two halves.
    """
    wanted = unet.state_dict()
    tables = {name: positions(*value.shape[1:]) for name, value in wanted.items() if name.endswith(TABLE)}
    state: dict[str, Tensor] = {}
    for path, moving in ((images, False), (motion, True)):
        half = motion_tensors(read(path), path) if moving else read(path)
        check({name: value for name, value in wanted.items() if name not in tables and (MODULE in name) == moving}, half, path)
        state |= half
    unet.load_state_dict(state | tables, assign=True)


def check(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Raises ConfigError, naming one tensor, if names or shapes of a checkpoint's tensors differ from those wanted."""
    wrong = [f"lacks {name}" for name in wanted if name not in state]
    wrong += [f"has an unknown {name}" for name in state if name not in wanted]
    wrong += [
        f"has {name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f", and differs in {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(f"{path} does not fit this network of MagicAnimate: it {sorted(wrong)[0]}{more}")


def _check_positions(name: str, table: Tensor, path: Path) -> None:
    if table.ndim != 3 or (table.float() - positions(*table.shape[1:])).abs().max() > ROUNDING:
        raise ConfigError(f"{path} has other positions than sines and cosines in {name}, which this version cannot keep")
