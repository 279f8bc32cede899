"""Open-Sora v1.0: STDiT-XL/2 from the released checkpoints, T5 v1.1 XXL, and the image VAE of Stable Diffusion."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdqbench.config import DTYPES, Model
from vdqbench.errors import ConfigError, nearest
from vdqbench.models.base import Condition, Job
from vdqbench.models.stdit import STDiT
from vdqbench.models.stdit_adapter import STDiTAdapter
from vdqbench.models.t5 import CaptionEncoder
from vdqbench.models.visiting import visiting

POSITIONS = ("pos_embed", "pos_embed_temporal")
"""Buffers that follow from resolution and length; checkpoints hold others' or none."""
DOWNSCALE = 8
"""Pixels of a side to one latent position, in the VAE of Stable Diffusion."""
FOLDERS = {"text_encoder": "t5-v1_1-xxl", "vae": "sd-vae-ft-ema"}
"""Names of the parts' folders where the whole model lies in one."""
XL2 = {
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "patch_size": (1, 2, 2),
    "caption_channels": 4096,
    "model_max_length": 120,
    "pred_sigma": True,
    "space_scale": 1.0,
    "time_scale": 1.0,
}
"""STDiT-XL/2 at 16 frames of 512x512."""


@dataclass(frozen=True)
class Options:
    """`model.options` of Open-Sora.

    Attributes:
        stdit: what differs from `XL2`; space_scale is 0.5 at 256x256, time_scale 2/3 for 64 frames.
        split_qkv: quantize q, k and v of the self attentions by themselves, as ViDiT-Q does (364 layers in the blocks), or as the
            one layer that they are in the checkpoint (252).
        text_dtype: of T5, which the original runs in float32 always.
        fps: frames per second.
    """

    stdit: dict[str, Any] = field(default_factory=dict)
    split_qkv: bool = True
    text_dtype: str = "float32"
    fps: int = 8

    @classmethod
    def of(cls, model: Model) -> Options:
        """Raises ConfigError for an option or a size that there is not."""
        known = [one.name for one in fields(cls)]
        for key in model.options:
            if key not in known:
                raise ConfigError(f"model.options.{key} is not an option of {model.name}{nearest(str(key), known)}")
        options = cls(**model.options)
        for key in options.stdit:
            if key not in XL2:
                raise ConfigError(f"model.options.stdit.{key} is not part of STDiT's architecture{nearest(str(key), XL2)}")
        if options.text_dtype not in DTYPES:
            raise ConfigError(f"model.options.text_dtype={options.text_dtype} is not a choice{nearest(options.text_dtype, DTYPES)}")
        return options


def latent_size(model: Model) -> tuple[int, int, int]:
    """Latent frames, rows and columns that `model.call` asks for.

    Raises:
        ConfigError: a size is missing, not known, or not a multiple of 16 pixels (8 to a latent, 2x2 of them to a token).
    """
    names, unit = ("num_frames", "height", "width"), 2 * DOWNSCALE
    for key in model.call:
        if key not in names:
            raise ConfigError(f"model.call.{key} is not asked of {model.name}{nearest(str(key), names)}")
    for name in names:
        value, multiple = model.call.get(name), 1 if name == "num_frames" else unit
        if not isinstance(value, int) or value < 1 or value % multiple:
            raise ConfigError(f"model.call.{name}={value} must be a positive multiple of {multiple}")
    frames, height, width = (model.call[name] for name in names)
    return frames, height // DOWNSCALE, width // DOWNSCALE


class OpenSora(STDiTAdapter):
    """Text to 16 frames of 512x512 or 256x256.

    T5 stays in `model.options.text_dtype`; STDiT and the VAE are in `model.dtype`, with timesteps and latents in float32 throughout
    (bfloat16 has no 999).

    Args:
        model: has the parts `denoiser` (a checkpoint, the first of its files), `text_encoder` and `vae` (folders).
        sampler: `name`, `steps`, `guidance`, `guided_channels` and `options`.
        device: where it runs; `meta` for a denoiser without weights.

    Raises:
        ConfigError: options or sizes that do not exist, or weights that do not fit.
    """

    frames_at_once = 16

    def __init__(self, model: Model, sampler: dict[str, Any], device: str) -> None:
        super().__init__(sampler, device)
        self.model, self.options, self.size = model, Options.of(model), latent_size(model)
        self.architecture: dict[str, Any] = {**XL2, **self.options.stdit}
        self.fps, self.dtype = self.options.fps, getattr(torch, model.dtype)
        self._loaded: dict[str, Any] = {}

    @classmethod
    def outlined(cls, model: Model) -> OpenSora:
        """The adapter of a model whose weights need not be here, on the meta device: layers, anatomy, denoiser and example."""
        return cls(model, {"name": "ddim", "steps": 2, "guidance": 1.0, "guided_channels": None, "options": {}}, "meta")

    @property
    def stdit(self) -> STDiT:
        return self._part("denoiser", self._load_stdit)

    @property
    def vae(self) -> Any:
        return self._part("decoder", self._load_vae)

    @property
    def text(self) -> CaptionEncoder:
        """The text encoder; loaded if it is not."""
        return self._part("encoder", self._load_text)

    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        return [{"y": y, "mask": mask} for y, mask in self.text([job.prompt for job in jobs])]

    def release(self, part: str) -> None:
        if self.model.offload != "none":
            self._loaded.pop(part, None)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _part(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]

    def _load_stdit(self) -> STDiT:
        with torch.device("meta"):
            stdit = STDiT(input_size=self.size, **self.architecture)
        if self.device.type != "meta":
            load_checkpoint(stdit, self.model.where("denoiser") / self.model.files[0])
        stdit = stdit.eval().requires_grad_(False).to(dtype=self.dtype)
        stdit = stdit.split_qkv() if self.options.split_qkv else stdit
        return self._placed(stdit, stdit.blocks)

    def _load_text(self) -> CaptionEncoder:
        folder, length = self._folder("text_encoder"), self.architecture["model_max_length"]
        text = CaptionEncoder(folder, length, getattr(torch, self.options.text_dtype))
        if text.width != (wanted := self.architecture["caption_channels"]):
            raise ConfigError(f"the text encoder in {folder} gives {text.width} channels where STDiT reads {wanted}; give T5 v1.1 XXL")
        return self._placed(text, text.network.encoder.block)

    def _load_vae(self) -> Any:
        from diffusers import AutoencoderKL

        folder, options = self._folder("vae"), {"local_files_only": True, "use_safetensors": True}
        vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=self.dtype, **options)
        if (found := 2 ** (len(vae.config.block_out_channels) - 1)) != DOWNSCALE:
            raise ConfigError(f"the VAE in {folder} makes {found} pixels of a latent where Open-Sora has {DOWNSCALE}; give sd-vae-ft-ema")
        return vae.eval().requires_grad_(False).to(self.device)

    def _placed(self, network: Any, blocks: Any) -> Any:
        return visiting(network, blocks, self.device) if self.model.offload == "layers" else network.to(self.device)

    def _folder(self, part: str) -> Path:
        folder = self.model.where(part)
        return below if (below := folder / FOLDERS[part]).is_dir() else folder


def load_checkpoint(stdit: STDiT, path: Path) -> None:
    """Give an STDiT on the meta device the weights of a checkpoint, mapped into memory, without running anything in the file.

    Its two position buffers are computed anew, whatever the checkpoint holds; averaged weights (`ema`) are taken where there are such.

    Raises:
        ConfigError: names or shapes that are not exactly those of the model, or a file that holds anything but tensors.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as a checkpoint ({' '.join(str(error).split())[:160]})") from error
    saved = saved.get("ema", saved) if isinstance(saved, Mapping) else {}
    state: dict[str, Tensor] = {name: value for name, value in saved.items() if name not in POSITIONS and isinstance(value, Tensor)}
    wanted = {name: value for name, value in stdit.state_dict().items() if name not in POSITIONS}
    wrong = [f"lacks {name}" for name in wanted if name not in state]
    wrong += [f"has an unknown {name}" for name in state if name not in wanted]
    wrong += [
        f"has {name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        more = f", and differs in {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ConfigError(f"{path} is not a checkpoint of this STDiT: it {sorted(wrong)[0]}{more}")
    stdit.load_state_dict(state, strict=False, assign=True)
