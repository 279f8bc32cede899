"""Any text-to-video pipeline of diffusers, in a folder of its layout: the adapter of mini_hunyuan as of HunyuanVideo."""

from __future__ import annotations

import gc
import importlib.util
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from vdqbench.clock import StepClock, shadowed
from vdqbench.config import DTYPES, Model
from vdqbench.errors import ConfigError, nearest
from vdqbench.models.base import Adapter, Anatomy, Condition, Job, noise_source
from vdqbench.models.blueprint import DECODER, DENOISER, ENCODER, Blueprint
from vdqbench.models.experts import Experts
from vdqbench.models.families import family_of
from vdqbench.models.given import given, given_control
from vdqbench.models.roles import roles_by
from vdqbench.models.samplers import scheduler_of
from vdqbench.models.visiting import visiting
from vdqbench.quant.layer import QUANTIZED
from vdqbench.replay import to_device

ARCHITECTURES = Path(__file__).resolve().parent / "architectures"
PARTS = {"encoder": ENCODER, "denoiser": DENOISER, "decoder": DECODER}
OPTIONS = ("pipeline", "scheduler", "fps", "decoder_dtype", "tiling")
"""Of the adapter: the pipeline's class, where the folder names another; options of the model's own scheduler, where the folder's are
not what it was trained with; frames per second; the VAE's dtype; whether the VAE decodes tile by tile."""
RESERVED = ("self", "prompt", "latents", "generator", "output_type", "return_dict", "num_inference_steps", "guidance_scale")
"""Arguments of a pipeline that the adapter gives it."""
CLIP_TOKENS = 77
FRAMES_AT_ONCE = 16
"""That an image autoencoder decodes."""
FRAMES = "conditioning_frames"
"""What a control network is told, as a part of a condition."""


class PipelineAdapter(Adapter):
    """A pipeline of diffusers, whose own code prepares prompts and samples; its parts are loaded when they are first needed.

    Args:
        model: where it is (see `Blueprint.of_model`), `call` (what each generation is asked for, by the names of the pipeline's
            arguments; height, width and num_frames at least), `options` (see `OPTIONS`), dtype and offload.
        sampler: `name`, `steps`, `guidance`, `guided_channels` (None, since pipelines guide all) and `options`.
        device: where it runs; `meta` for roles, sizes and costs alone.
        blueprint: what it is made of, if that is known.

    Raises:
        ConfigError: something of this does not fit the pipeline; no weights are loaded before.
    """

    def __init__(self, model: Model, sampler: dict[str, Any], device: str, blueprint: Blueprint | None = None) -> None:
        blueprint = blueprint or Blueprint.of_model(model)
        self.model, self.sampler, self.device, self.blueprint = model, sampler, torch.device(device), blueprint
        self.family = family_of(blueprint.kind.__name__)
        self.call = {**blueprint.about.get("call", {}), **model.call}
        self.fps = int(model.options.get("fps") or blueprint.about.get("fps") or self.family.fps)
        self.clock = StepClock(layout=self.family.layout(self.call, sampler["guidance"]))
        self.pipe = blueprint.outline((given_control if self.family.control else given)(blueprint.kind))
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.told_device = self.device
        self._check()
        own = {**blueprint.parts["scheduler"].config, **model.options.get("scheduler", {})}
        self.pipe.scheduler = scheduler_of(sampler["name"], own, sampler["options"])
        self.name = "unet" if "unet" in blueprint.parts else "transformer"
        self.names = {part: [name for name in names if name in blueprint.parts] for part, names in PARTS.items()}
        self.empty = self._merged({name: getattr(self.pipe, name) for names in self.names.values() for name in names})
        for name in self.names["denoiser"]:
            setattr(self.pipe, name, self.empty[name])
        self.loaded: set[str] = set()
        if self.device.type == "meta":
            self.family.on_meta(self.empty[self.name])

    @classmethod
    def outlined(cls, model: Model) -> PipelineAdapter:
        """The adapter of a model whose weights need not be here, on the meta device: layers, anatomy, denoiser and example.

        Weights of the user's own say themselves what they are of, once they are here.

        Raises:
            ConfigError: its architecture is not known.
        """
        path = ARCHITECTURES / f"{model.name}.json"
        known = path.is_file()
        own = (model.source is not None or not known) and model.is_here
        if not known and not own:
            raise ConfigError(f"model={model.name} has no architecture of its own{nearest(model.name, known_architectures())}")
        blueprint = Blueprint.of_model(model) if own else Blueprint.of_architecture(path)
        sampler = {"name": "model", "steps": 2, "guidance": 1.0, "guided_channels": None, "options": {}}
        return cls(model, sampler, "meta", blueprint)

    @property
    def denoiser(self) -> nn.Module:
        if self.device.type != "meta":
            self._load("denoiser")
        return getattr(self.pipe, self.name)

    def layers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for prefix, network in self._networks().items():
            found |= {f"{prefix}{name}": role for name, role in roles_by(self.family.rules, network).items()}
        return found

    def anatomy(self) -> Anatomy:
        parts = {prefix: self.family.anatomy(network) for prefix, network in self._networks().items()}
        if len(parts) == 1:
            return parts[""]
        return Anatomy(tuple(f"{prefix}{block}" for prefix, part in parts.items() for block in part.blocks))

    @torch.no_grad()
    def example(self) -> dict[str, Any]:
        tokens = self.call.get("max_sequence_length") or self.family.tokens or self.blueprint.tokens or CLIP_TOKENS
        blank = self.family.blank(self.empty[self.name].config, tokens)
        if self.family.control:
            blank[FRAMES] = torch.zeros(1, 1, 1, 1)  # what its network adds to features costs the denoiser no product
        seen: list[dict[str, Any]] = []
        with ExitStack() as undo:
            undo.enter_context(shadowed(self.pipe, "told_device", torch.device("cpu")))
            if self.family.control:
                undo.enter_context(shadowed(self.pipe.controlnet, "forward", lambda *args, **kwargs: (None, None)))
            undo.callback(self.denoiser.register_forward_pre_hook(partial(_stop, seen), with_kwargs=True).remove)
            undo.enter_context(suppress(_SeenError))
            self._sample([Job("", "", 0)], [blank], 1.0)
        return to_device(seen[0], self.device)

    @torch.no_grad()
    def encode(self, jobs: Sequence[Job]) -> list[Condition]:
        sees = self.family.control and self.pipe.controlnet.config.use_simplified_condition_embedding  # latents of frames, from the VAE
        for part in ("encoder", "decoder") if sees else ("encoder",):
            self._load(part, beside={"encoder", "decoder"} if sees else set())
        texts = {prompt: self._text(prompt) for prompt in dict.fromkeys(job.prompt for job in jobs)}
        conditions = [dict(texts[job.prompt]) for job in jobs]
        if self.family.control:
            for job, condition in zip(jobs, conditions, strict=True):
                condition[FRAMES] = self._frames(job)
        return conditions

    @torch.no_grad()  # not inference_mode, under which layers cannot tell that they were given the same, unchanged tensor
    def denoise(self, jobs: Sequence[Job], conditions: Sequence[Condition]) -> Tensor:
        self._load("denoiser")
        latents, pairs = [], list(zip(jobs, conditions, strict=True))
        with self.clock.attached(self.pipe.scheduler, [self.denoiser]):
            for _, alike in groupby(pairs, key=lambda pair: [(name, value.shape) for name, value in sorted(pair[1].items())]):
                some = list(alike)  # texts of different lengths cannot be one batch, and padding would change them
                latents.append(self._sample([job for job, _ in some], [told for _, told in some], self.sampler["guidance"]).cpu())
        return torch.cat(latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        self._load("decoder")
        vae = self.pipe.vae
        for one in self.family.arranged(self.pipe, latents, self.call).split(1):
            frames = decoded(vae, unscaled(vae, one.to(self.device, torch.float32)).to(vae.dtype), self.call)[0].float()
            pixels = (frames.clamp(-1, 1) * 127.5 + 128).clamp(0, 255).to(torch.uint8)
            yield pixels.permute(1, 2, 3, 0).cpu().numpy()

    def release(self, part: str) -> None:
        if self.model.offload != "none":
            self._free(part)

    def _networks(self) -> dict[str, Any]:
        """The networks of the denoiser without weights, by the prefix of their layers' names."""
        denoiser = self.empty[self.name]
        return {f"{name}.": getattr(denoiser, name) for name in denoiser.turns} if isinstance(denoiser, Experts) else {"": denoiser}

    def _sample(self, jobs: Sequence[Job], conditions: Sequence[Condition], scale: float) -> Tensor:
        """Latents [B, ...] as the pipeline leaves them."""
        pipe, known = self.pipe, inspect.signature(self.blueprint.kind.__call__).parameters  # type: ignore[operator]
        told = {name: torch.stack([one[name] for one in conditions]).to(pipe.told_device) for name in conditions[0]}
        call = {key: value for key, value in self.call.items() if key in known}
        if "video_length" in known:
            call["video_length"] = self.call["num_frames"]
        if "guidance_scale" in known:
            call["guidance_scale"] = scale
        else:
            pipe.guider = type(pipe.guider).from_config(pipe.guider.config, guidance_scale=scale, enabled=scale > 1)
        sources = [noise_source(job) for job in jobs]  # of the initial noise, and of what schedulers draw afterwards
        pipe.told_noise = lambda shape: torch.stack([torch.randn(shape[1:], generator=source) for source in sources])
        return pipe(
            **{**call, "prompt": None, "negative_prompt": None, **told},
            num_inference_steps=self.sampler["steps"],
            generator=sources,
            output_type="latent",
            return_dict=False,
        )[0]

    def _text(self, prompt: str) -> Condition:
        """What the pipeline makes of a prompt, and of no or the negative prompt if there is guidance."""
        known = inspect.signature(self.pipe.encode_prompt).parameters
        call = {key: value for key, value in self.call.items() if key in known} | {"device": self.device}
        if "num_images_per_prompt" in known:
            call["num_images_per_prompt"] = 1
        names, values = (*self.family.condition,), ()
        if "do_classifier_free_guidance" in known:
            names += self.family.negative
            values = self.pipe.encode_prompt(prompt=prompt, do_classifier_free_guidance=True, **call)
        else:
            values = self.pipe.encode_prompt(prompt=prompt, **call)
            if self.family.layout(self.call, 2.0) != "embedded":
                names += self.family.negative
                values += self.pipe.encode_prompt(prompt=self.call.get("negative_prompt") or "", **call)
        return {name: _kept(value[0]) for name, value in zip(names, values, strict=True)}

    def _frames(self, job: Job) -> Tensor:
        """What the control network is told of a job's images, [C, N, H, W]."""
        names, places = list(self.model.inputs), self.call.get("controlnet_frame_indices", [0])
        files = [job.inputs[name] for name in names if name in job.inputs]
        if len(files) != len(places):
            raise ConfigError(
                f"model.call.controlnet_frame_indices={list(places)} has places for {len(places)} images, but prompt {job.prompt_id} "
                f"comes with {len(files)} ({', '.join(names)}); give each place one image with prompts.inputs"
            )
        images = [Image.open(file).convert("RGB") for file in files]
        return _kept(self.pipe.control_frames(images, self.call["height"], self.call["width"], self._dtype("denoiser")))

    def _dtype(self, part: str) -> torch.dtype:
        return getattr(torch, self.model.options.get("decoder_dtype", self.model.dtype) if part == "decoder" else self.model.dtype)

    def _load(self, part: str, beside: Collection[str] = ()) -> None:
        """Load a part, unless it is there.

        Under offload the encoder and the decoder make room, but for what is needed `beside` it; the denoiser, which may be quantized,
        does so when it is released.
        """
        if part in self.loaded:
            return
        if self.model.offload != "none":
            for other in self.loaded.difference({"denoiser"}, beside):
                self._free(other)
        modules = self._merged({name: self.blueprint.parts[name].load(self._dtype(part)) for name in self._needed(part)})
        for name, module in modules.items():
            setattr(self.pipe, name, self._placed(name, module) if isinstance(module, nn.Module) else module)
        self.loaded.add(part)

    def _merged(self, modules: dict[str, Any]) -> dict[str, Any]:
        """Modules by name, with those put together that are one denoiser."""
        if isinstance(modules.get("unet"), diffusers.UNet2DConditionModel):
            whole = diffusers.UNetMotionModel.from_unet2d(modules["unet"], modules.pop("motion_adapter"))
            modules["unet"] = whole.eval().requires_grad_(False)
        ratio = self.blueprint.options.get("boundary_ratio")
        if "transformer_2" in modules and ratio is not None:
            both = Experts(modules["transformer"], modules["transformer_2"], ratio * self.pipe.scheduler.config.num_train_timesteps)
            modules |= {"transformer": both, "transformer_2": both}
        return modules

    def _needed(self, part: str) -> list[str]:
        """Names of what is loaded for a part: motion modules only if the denoiser comes without."""
        unet = self.blueprint.parts.get("unet")
        apart = unet is not None and issubclass(unet.kind, diffusers.UNet2DConditionModel)
        return [name for name in self.names[part] if apart or name != "motion_adapter"]

    def _placed(self, name: str, module: Any) -> Any:
        """A module where it runs."""
        if name == self.name and self.model.offload == "layers":
            return visiting(module, [module.get_submodule(block) for block in self.anatomy().blocks], self.device)
        if name in DECODER and self.model.options.get("tiling"):
            module.enable_tiling()
        return module.to(self.device)

    def _free(self, part: str) -> None:
        if part not in self.loaded:
            return
        if part == "denoiser" and any(type(module) in QUANTIZED.values() for module in self.denoiser.modules()):
            raise RuntimeError("the denoiser is quantized; restore it before it is released")
        for name in self.names[part]:
            setattr(self.pipe, name, self.empty[name])
        self.loaded.remove(part)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _check(self) -> None:
        """Raises ConfigError for options that do not fit the pipeline."""
        model, pipe = self.model, self.blueprint.kind
        known = {**inspect.signature(pipe.__call__).parameters, **inspect.signature(pipe.encode_prompt).parameters}  # type: ignore
        allowed = {name for name in known if name not in RESERVED and "embeds" not in name and "callback" not in name}
        allowed = allowed - {"device", "dtype", "video_length", FRAMES} | {"num_frames"}
        for key in self.call:
            if key not in allowed:
                raise ConfigError(f"model.call.{key} is not an argument of {pipe.__name__}{nearest(key, allowed)}")
        for key in ("height", "width", "num_frames"):
            if not isinstance(self.call.get(key), int):
                raise ConfigError(f"model.call.{key} of {model.name} is missing; give a whole number")
        for key in model.options:
            if key not in OPTIONS:
                raise ConfigError(f"model.options.{key} is not an option of a pipeline{nearest(key, OPTIONS)}")
        if self.sampler["guided_channels"] is not None:
            raise ConfigError(
                f"sampler.guided_channels={self.sampler['guided_channels']} cannot be had of {model.name}: "
                "pipelines guide all channels; use null"
            )
        if (dtype := model.options.get("decoder_dtype", model.dtype)) not in DTYPES:
            raise ConfigError(f"model.options.decoder_dtype={dtype} is not a choice{nearest(dtype, DTYPES)}")
        for package in self.family.packages if self.device.type != "meta" else ():
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"{model.name} needs {package}, which is not installed; pip install 'vdqbench[models]'")


class _SeenError(Exception):
    """The call that was waited for has been seen."""


def _stop(seen: list[dict[str, Any]], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    given_by_name = dict(zip(inspect.signature(type(module).forward).parameters, (module, *args), strict=False)) | kwargs
    seen.append({name: value for name, value in given_by_name.items() if name != "self"})
    raise _SeenError


def _kept(value: Tensor) -> Tensor:
    """A copy on the CPU that can be written to a file."""
    return value.cpu().clone(memory_format=torch.contiguous_format)


def known_architectures() -> list[str]:
    """Names of the models whose architecture is known without their weights."""
    return sorted(path.stem for path in ARCHITECTURES.glob("*.json"))


def unscaled(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, C, T, H, W] as the autoencoder made them, from what the denoiser works on: mean + std * latents / scaling factor."""
    known, scale = {**vae.config, **dict(vae.named_buffers(recurse=False))}, vae.config.get("scaling_factor") or 1.0
    if known.get("latents_mean") is None or known.get("latents_std") is None:
        return latents / scale
    mean, std = (torch.as_tensor(known[name]).to(latents).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    return latents * std / scale + mean


def decoded(vae: Any, latents: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Frames [B, 3, T, H, W] of about -1..1 from latents of one video."""
    of_images = isinstance(vae, diffusers.AutoencoderKL)
    if of_images:
        images = latents[0].transpose(0, 1).split(FRAMES_AT_ONCE)
        return torch.cat([vae.decode(some, return_dict=False)[0] for some in images]).transpose(0, 1)[None]
    if not vae.config.get("timestep_conditioning"):
        return vae.decode(latents, return_dict=False)[0]
    time = call.get("decode_timestep", 0.0)  # LTX's later autoencoders take the last step of denoising themselves
    share = time if call.get("decode_noise_scale") is None else call["decode_noise_scale"]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents)
    return vae.decode((1 - share) * latents + share * noise, torch.tensor([time]).to(latents), return_dict=False)[0]
