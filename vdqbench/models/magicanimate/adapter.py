"""MagicAnimate: a person in an image moved by a sequence of poses, from the released checkpoints."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vdqbench.clock import StepClock
from vdqbench.config import Model
from vdqbench.errors import ConfigError, nearest
from vdqbench.models.base import Adapter, Anatomy, Condition, Job, initial_noise
from vdqbench.models.ddim import guide
from vdqbench.models.magicanimate.checkpoint import fill, fill_animation
from vdqbench.models.magicanimate.networks import AppearanceEncoder, Architecture
from vdqbench.models.magicanimate.pictures import WINDOW, Pictures
from vdqbench.models.roles import UNET_MOTION, roles_by, unet_motion_anatomy
from vdqbench.models.samplers import scheduler_of
from vdqbench.models.visiting import visiting

CHANNELS, DOWNSCALE, SCALE = 4, 8, 0.18215
"""Of latents: their channels, pixels of a side to one position, and what the autoencoder's are multiplied with."""
TOKENS = 77
"""Tokens of a text, L, for which costs are counted; CLIP's own tokenizer fills every text up to as many."""
FOLDERS = {"magicanimate": "MagicAnimate", "pipeline": "stable-diffusion-v1-5", "vae": "sd-vae-ft-mse"}
"""Names of the parts' folders where the whole model lies in one, as the original wants it."""
ANIMATION = "temporal_attention/temporal_attention.ckpt"
"""The checkpoint of the UNet of videos, below the folder of the part `magicanimate`."""
WEIGHTS = "diffusion_pytorch_model"
"""Name of a network's weights in its folder, without the suffix."""
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear", "clip_sample": False, "steps_offset": 1}
"""The original's: betas of `configs/inference/inference.yaml`; its pipeline sets the other two, whatever the configuration says."""


@dataclass(frozen=True)
class Options:
    """`model.options` of MagicAnimate.

    Attributes:
        scheduler: what the schedulers are told of the noise that the model was trained with, and of DDIM; what is left out is as in
            the original (`SCHEDULER`).
        fps: frames per second.
    """

    scheduler: dict[str, Any] = field(default_factory=dict)
    fps: int = 25

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheduler", {**SCHEDULER, **self.scheduler})

    @classmethod
    def of(cls, model: Model) -> Options:
        """Raises ConfigError for an option that there is not."""
        known = [one.name for one in fields(cls)]
        for key in model.options:
            if key not in known:
                raise ConfigError(f"model.options.{key} is not an option of {model.name}{nearest(str(key), known)}")
        return cls(**model.options)


def size_of(model: Model) -> tuple[int, int, int]:
    """Frames, height and width that `model.call` asks for.

    Raises:
        ConfigError: one is missing, not known, not a multiple of 8 pixels, or more frames than a window.
    """
    names = ("num_frames", "height", "width")
    for key in model.call:
        if key not in names:
            raise ConfigError(f"model.call.{key} is not asked of {model.name}{nearest(str(key), names)}")
    for name in names:
        value, multiple = model.call.get(name), 1 if name == "num_frames" else DOWNSCALE
        if not isinstance(value, int) or value < 1 or value % multiple:
            raise ConfigError(f"model.call.{name}={value} must be a positive multiple of {multiple}")
    if (frames := model.call["num_frames"]) > WINDOW:
        raise ConfigError(
            f"model.call.num_frames={frames} of {model.name} must be at most {WINDOW}: "
            "windows that overlap, of which the original makes longer videos, are not supported"
        )
    return frames, model.call["height"], model.call["width"]


@dataclass(frozen=True)
class Guides:
    """The networks that are not quantized: what they make of image and poses at each step is told to the UNet."""

    appearance: AppearanceEncoder
    control: Any


class MagicAnimate(Adapter):
    """A re-implementation on diffusers' networks; the prompt's text is not looked at, the original's is empty.

    MagicAnimate is of Xu et al. 2023, arXiv 2311.16498; what is said of the original is read off its code, github.com
    magic-research/magic-animate at d2bc3bc.

    Both guidance branches have the empty text; the unconditional one differs in that it does not see the reference image. It comes first
    in the batch. The ControlNet is asked for the conditional branch alone, and adds the same to both. A condition is `text` [L, D],
    `latents` [4, H/8, W/8] of the reference image and `pose` uint8 [F, 3, H, W]. Latents are float32 between steps.

    Args:
        model: has the parts `magicanimate` (appearance encoder, ControlNet, and the UNet of videos or its motion modules), `pipeline`
            (Stable Diffusion 1.5) and `vae`, or a folder with all of them (see `FOLDERS`).
        sampler: `name`, `steps`, `guidance`, `guided_channels` and `options`.
        device: where it runs; `meta` for roles, sizes and costs alone.
        architecture: of its networks, if they are not to be looked up in their folders.

    Raises:
        ConfigError: options or sizes that do not exist; later, inputs or weights that do not fit.
    """

    def __init__(self, model: Model, sampler: dict[str, Any], device: str, architecture: Architecture | None = None) -> None:
        self.model, self.sampler, self.device = model, sampler, torch.device(device)
        self.options, self.size = Options.of(model), size_of(model)
        channels = sampler["guided_channels"]
        if channels is not None and not 1 <= channels <= CHANNELS:
            raise ConfigError(f"sampler.guided_channels={channels} must lie in 1..{CHANNELS}, or be null for all")
        self.scheduler = scheduler_of(sampler["name"], {"_class_name": "DDIMScheduler", **self.options.scheduler}, sampler.get("options"))
        self.clock = StepClock(layout="batched_reversed" if sampler["guidance"] > 1 else "embedded")
        self.fps, self.dtype = self.options.fps, getattr(torch, model.dtype)
        self.architecture = architecture or Architecture.of(
            self._folder("pipeline") / "unet",
            self._folder("magicanimate") / "appearance_encoder",
            self._folder("magicanimate") / "densepose_controlnet",
        )
        self._loaded: dict[str, Any] = {}

    @classmethod
    def outlined(cls, model: Model) -> MagicAnimate:
        """The adapter of a model whose weights need not be here, on the meta device: layers, anatomy, denoiser and example."""
        sampler = {"name": "ddim", "steps": 2, "guidance": 1.0, "guided_channels": None, "options": {}}
        return cls(model, sampler, "meta", Architecture())

    @property
    def denoiser(self) -> nn.Module:
        return self._part("denoiser", self._load_unet)

    @property
    def guides(self) -> Guides:
        """Loaded if they are not; freed with the denoiser."""
        return self._part("guides", self._load_guides)

    @property
    def vae(self) -> Any:
        """The autoencoder of images; loaded if it is not."""
        return self._part("decoder", self._load_vae)

    def layers(self) -> dict[str, str]:
        return roles_by(UNET_MOTION, self.denoiser)

    def anatomy(self) -> Anatomy:
        return unet_motion_anatomy(self.denoiser)

    def example(self) -> dict[str, Any]:
        """A call of the conditional branch, which is the one that sees the reference."""
        reference, down, mid = self._told

        def blank(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)

        return {
            "sample": blank(1, *self._latents),
            "timestep": torch.zeros((), device=self.device),
            "encoder_hidden_states": blank(1, TOKENS, self.architecture.unet["cross_attention_dim"]),
            "reference": {name: blank(*shape) for name, shape in reference.items()},
            "down": tuple(blank(*shape) for shape in down),
            "mid": blank(*mid),
        }

    @torch.no_grad()
    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        seen = [Pictures.of(job, *self.size) for job in jobs]
        tokenizer, encoder = self._part("encoder", self._load_text)
        empty = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        text = encoder(empty.input_ids.to(self.device))[0][0].cpu()
        conditions = []
        for one in seen:
            image = one.image[None].to(self.device).float() / 127.5 - 1
            latents = self.vae.encode(image.to(self.vae.dtype)).latent_dist.mean * SCALE
            conditions.append({"text": text.clone(), "latents": latents[0].cpu(), "pose": one.pose})
        return conditions

    @torch.no_grad()  # not inference_mode, under which layers cannot tell that they were given the same, unchanged tensor
    def denoise(self, jobs: Sequence[Job], conditions: Sequence[Condition]) -> Tensor:
        unet, guides, scheduler = self.denoiser, self.guides, self.scheduler
        told = {name: torch.stack([one[name] for one in conditions]).to(self.device, self.dtype) for name in conditions[0]}
        text, image, pose = told["text"], told["latents"], told["pose"].flatten(0, 1) / 255
        texts = text.repeat_interleave(self.size[0], dim=0)
        branches = 2 if self.clock.batched else 1
        with self.clock.attached(scheduler, [unet]):
            scheduler.set_timesteps(self.sampler["steps"])
            x = torch.stack([initial_noise(job, self._latents) for job in jobs]).to(self.device) * scheduler.init_noise_sigma
            for moment in scheduler.timesteps:
                given, t = scheduler.scale_model_input(x, moment).to(self.dtype), moment.to(self.device)
                reference = guides.appearance(image, t, text)
                down, mid = guides.control(given.transpose(1, 2).flatten(0, 1), t, texts, pose, return_dict=False)
                out = unet(torch.cat([given] * branches), t, torch.cat([text] * branches), reference, down, mid).float()
                x = scheduler.step(self._guided(out), moment, x, return_dict=False)[0]
        return x.cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        vae = self.vae
        for one in latents:
            frames = (one.transpose(0, 1) / SCALE).to(self.device, vae.dtype).split(1)
            pixels = torch.cat([vae.decode(frame, return_dict=False)[0].float() for frame in frames])
            yield (pixels.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()

    def release(self, part: str) -> None:
        if self.model.offload == "none":
            return
        for name in ("denoiser", "guides") if part == "denoiser" else (part,):
            self._loaded.pop(name, None)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def _latents(self) -> tuple[int, int, int, int]:
        frames, height, width = self.size
        return CHANNELS, frames, height // DOWNSCALE, width // DOWNSCALE

    @cached_property
    def _told(self) -> tuple[dict[str, torch.Size], list[torch.Size], torch.Size]:
        """Shapes of what the guides tell the UNet of one video: reference, and what is added to features."""
        channels, frames, height, width = self._latents

        def blank(*shape: int) -> Tensor:
            return torch.empty(shape, device="meta")

        text, t = blank(frames, TOKENS, self.architecture.unet["cross_attention_dim"]), blank()
        with torch.no_grad():
            reference = self.architecture.encoder()(blank(1, channels, height, width), t, text[:1])
            pose = blank(frames, 3, *self.size[1:])
            down, mid = self.architecture.controlnet()(blank(frames, channels, height, width), t, text, pose, return_dict=False)
        return {name: tokens.shape for name, tokens in reference.items()}, [one.shape for one in down], mid.shape

    def _guided(self, out: Tensor) -> Tensor:
        if not self.clock.batched:
            return out
        unconditional, conditional = out.chunk(2)
        return guide(conditional, unconditional, self.sampler["guidance"], self.sampler["guided_channels"] or CHANNELS)

    def _part(self, name: str, load: Any) -> Any:
        if name not in self._loaded:
            self._loaded[name] = load()
        return self._loaded[name]

    def _load_unet(self) -> nn.Module:
        unet: Any = self.architecture.animation(self.size[0])
        if self.device.type != "meta":
            fill_animation(unet, _weights(self._folder("pipeline") / "unet"), self._folder("magicanimate") / ANIMATION)
        nn.Module.to(unet, self.dtype)  # diffusers' own warns whenever it is given a dtype
        return self._placed(unet, [unet.get_submodule(name) for name in unet_motion_anatomy(unet).blocks])

    def _load_guides(self) -> Guides:
        home = self._folder("magicanimate")
        appearance, control = self.architecture.encoder(), self.architecture.controlnet()
        for network, folder in ((appearance.unet, home / "appearance_encoder"), (control, home / "densepose_controlnet")):
            fill(network, _weights(folder))
            nn.Module.to(network, self.dtype)
        unet = appearance.unet
        return Guides(
            self._placed(appearance, [*unet.down_blocks, unet.mid_block, *unet.up_blocks]),
            self._placed(control, [*control.down_blocks, control.mid_block]),
        )

    def _load_text(self) -> tuple[Any, Any]:
        from transformers import CLIPTextModel, CLIPTokenizer

        home = self._folder("pipeline")
        encoder: Any = CLIPTextModel.from_pretrained(home / "text_encoder", local_files_only=True, dtype=self.dtype)
        tokenizer = CLIPTokenizer.from_pretrained(home / "tokenizer", local_files_only=True)
        return tokenizer, encoder.eval().requires_grad_(False).to(self.device)

    def _load_vae(self) -> Any:
        from diffusers import AutoencoderKL

        folder = self._folder("vae")
        vae: Any = AutoencoderKL.from_pretrained(folder, torch_dtype=self.dtype, local_files_only=True, use_safetensors=True)
        if (found := 2 ** (len(vae.config.block_out_channels) - 1)) != DOWNSCALE:
            raise ConfigError(f"the VAE in {folder} makes {found} pixels of a latent where {DOWNSCALE} are wanted; give sd-vae-ft-mse")
        return vae.eval().requires_grad_(False).to(self.device)

    def _placed(self, network: Any, blocks: Sequence[nn.Module]) -> Any:
        return visiting(network, blocks, self.device) if self.model.offload == "layers" else network.to(self.device)

    def _folder(self, part: str) -> Path:
        folder = self.model.where(part)
        return below if (below := folder / FOLDERS[part]).is_dir() else folder


def _weights(folder: Path) -> Path:
    """The file with a network's weights: safetensors, or what was there before them if that alone is there."""
    path, pickled = folder / f"{WEIGHTS}.safetensors", folder / f"{WEIGHTS}.bin"
    return pickled if pickled.is_file() and not path.is_file() else path
