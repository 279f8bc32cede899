"""Backbones of the CLIP metrics: open_clip models with weights, hashed, embedding whole batches of videos once."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants, try_to_load_from_cache
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from vdqbench.errors import ConfigError, nearest
from vdqbench.metrics.base import Side, VideoBatch
from vdqbench.metrics.heads import Heads

MINI = Path(__file__).resolve().parents[1] / "models" / "weights" / "mini_clip"
KEYS = ("model", "weights")
FEATURES = 1
"""Version of the way from frames to features, part of the name under which features are stored."""


@dataclass(frozen=True)
class Preprocessing:
    """How uint8 frames become the image tower's input.

    `clip` is the model's own: resize, crop, 0-1, mean and standard deviation. The other two are EvalCrafter's: squashed
    bilinearly to the model's size and fed as 0-255 floats without mean and standard deviation, once as OpenCV resizes (its CLIP
    score) and once as torchvision resizes float tensors (its CLIP-temp).
    """

    name: str
    antialias: bool = False


CLIP = Preprocessing("clip")
CV2 = Preprocessing("evalcrafter_cv2")


@dataclass(frozen=True, eq=False)
class Backbone:
    """An open_clip model in evaluation mode, its tokenizer, and the name and hash that a protocol states."""

    name: str
    sha256: str
    model: Any
    tokenizer: Any
    device: torch.device
    heads: Heads | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image tower's input."""
        side = self.model.visual.image_size
        return (side, side) if isinstance(side, int) else (side[0], side[1])

    def protocol(self) -> dict[str, str]:
        return {"backbone": self.name, "sha256": self.sha256}

    @torch.inference_mode()
    def embed_text(self, texts: list[str]) -> Tensor:
        """Unit embeddings [N, D] of texts, cut off at the model's context length."""
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1).cpu()

    @torch.inference_mode()
    def embed_frames(self, frames: Tensor, preprocessing: Preprocessing = CLIP, batch_size: int = 64) -> Tensor:
        """Features [M, D], not normalised, of frames uint8 [M, H, W, 3]."""
        parts = [self.model.encode_image(self.prepare(part, preprocessing)).float().cpu() for part in frames.split(batch_size)]
        return torch.cat(parts)

    def prepare(self, frames: Tensor, preprocessing: Preprocessing) -> Tensor:
        """The image tower's input [M, 3, h, w] from frames uint8 [M, H, W, 3]."""
        x = frames.to(self.device).permute(0, 3, 1, 2).contiguous()
        if preprocessing.name == "clip":
            return normalised(x, self.model.visual.preprocess_cfg, self.size)
        if preprocessing.name == "evalcrafter_cv2":
            return F.interpolate(x.float(), self.size, mode="bilinear", align_corners=False).add(0.5).floor()
        return F.interpolate(x.float(), self.size, mode="bilinear", align_corners=False, antialias=preprocessing.antialias)

    def features(self, batch: VideoBatch, of: Side = "videos", preprocessing: Preprocessing = CLIP, batch_size: int = 64) -> Tensor:
        """Frame features [N, T, D] of the batch's `videos` or `references`, embedded once for all metrics."""
        config = {name: self.model.visual.preprocess_cfg[name] for name in ("mean", "std", "interpolation", "resize_mode")}
        parts = {"version": FEATURES, **self.protocol(), "size": self.size, "config": config, "preprocessing": asdict(preprocessing)}

        def embed(frames: Tensor) -> Tensor:
            return self.embed_frames(frames.flatten(0, 1), preprocessing, batch_size).unflatten(0, frames.shape[:2])

        return batch.features(of, json.dumps(parts, sort_keys=True), embed)

    def captions(self, batch: VideoBatch) -> Tensor:
        """Unit embeddings [N, D] of the batch's prompts, embedded once for all metrics."""
        return batch.texts(json.dumps({"version": FEATURES, "texts": "unit", **self.protocol()}, sort_keys=True), self.embed_text)


def normalised(x: Tensor, config: Mapping[str, Any], size: tuple[int, int]) -> Tensor:
    """open_clip's evaluation transform of uint8 [M, 3, H, W], on tensors: resize, centre crop, 0-1, mean, deviation.

    Raises:
        ConfigError: a resize mode that no published video metric uses.
    """
    how, square = config["resize_mode"], size[0] == size[1]
    if how != "squash" and not (how == "shortest" and square):
        raise ConfigError(
            f"the backbone's resize_mode={how} for {size[0]}x{size[1]} is not supported; use one with a square input and shortest or squash"
        )
    target = list(size) if how == "squash" else [size[0]]
    x = transforms.resize(x, target, InterpolationMode(config["interpolation"]), antialias=True)
    x = transforms.center_crop(x, list(size)).float() / 255
    mean, std = (torch.tensor(config[key], device=x.device).view(3, 1, 1) for key in ("mean", "std"))
    return (x - mean) / std


def open_backbone(spec: Mapping[str, Any], device: str | None = None) -> Backbone:
    """The backbone that `{model: NAME, weights: WEIGHTS}` describes; one copy is kept per process, spec and device.

    `mini_clip` comes with the package (weights null or `packaged`). Any other name is an open_clip architecture with weights: a
    tag of open_clip's registry, or a file; or `local-dir:FOLDER` or `hf-hub:OWNER/NAME`, which bring their own. OpenAI's weights
    from a file need the architecture's `-quickgelu` name; with their tag that is seen to.

    Raises:
        ConfigError: unknown keys, an unknown name or tag, no weights, weights that cannot be fetched or do not fit.
    """
    if not isinstance(spec, Mapping) or not spec.get("model"):
        raise ConfigError(f"backbone={spec!r} must be like {{model: mini_clip}} or {{model: ViT-B-32, weights: openai}}")
    for key in spec:
        if key not in KEYS:
            raise ConfigError(f"backbone.{key} is not an option of a backbone{nearest(str(key), KEYS)}")
    try:
        where = torch.device(device if device not in (None, "auto") else "cuda" if torch.cuda.is_available() else "cpu")
    except RuntimeError as error:
        raise ConfigError(f"device={device} is not a device of torch; use auto, cpu, cuda or cuda:N") from error
    weights = spec.get("weights")
    return _open(str(spec["model"]), None if weights is None else str(weights), where)


@lru_cache(maxsize=4)
def _open(name: str, weights: str | None, device: torch.device) -> Backbone:
    if name == "mini_clip":
        if weights not in (None, "packaged"):
            raise ConfigError(f"backbone.weights={weights} does not go with mini_clip, whose weights are in the package; set it to null")
        mini = _load("mini_clip", f"local-dir:{MINI}", None, device, bpe_path=str(MINI / "bpe.txt.gz"))
        heads = Heads(mini.model.text_projection.shape[1])
        heads.load_state_dict(load_file(MINI / "heads.safetensors"))
        return replace(mini, heads=heads.eval().requires_grad_(False))
    if name.startswith(("local-dir:", "hf-hub:")):
        if weights is not None:
            raise ConfigError(f"backbone.weights={weights} does not go with {name}, which brings its own; set it to null")
        return _load(f"local-dir:{Path(name).name}" if name.startswith("local-dir:") else name, name, None, device)
    if name not in (known := open_clip.list_models()):
        raise ConfigError(f"backbone.model={name} is not mini_clip and not a model of open_clip{nearest(name, known)}")
    if weights is None:
        raise ConfigError(
            f"backbone.model={name} has no weights, and random ones would give meaningless scores; set backbone.weights to a file "
            f"or to a tag such as {', '.join(open_clip.list_pretrained_tags_by_model(name)[:3]) or 'none known for it'}"
        )
    if tag := open_clip.get_pretrained_cfg(name, weights):
        return _load(f"{name}/{weights}", name, _cached(tag) or weights, device, tag)
    path = Path(weights).expanduser()
    if not path.is_file():
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(f"backbone.weights={weights} is neither a file nor a tag of {name}{nearest(weights, tags) if tags else ''}")
    return _load(name, name, str(path), device)


def _load(
    label: str, name: str, weights: str | None, device: torch.device, tag: Mapping[str, Any] | None = None, **tokenizer: Any
) -> Backbone:
    """Open a model through open_clip; `tag` is the registry's entry of the weights, whose preprocessing and activation they need."""
    try:
        with _quiet():
            model = open_clip.create_model(
                name,
                weights,
                device=device,
                force_quick_gelu=bool(tag and tag.get("quick_gelu")),
                force_preprocess_cfg=None if tag is None else dict(tag),
                require_pretrained=True,
            ).eval()
            tokenize = open_clip.get_tokenizer(name, **tokenizer)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"backbone {label} cannot be opened ({reason}); give backbone.weights a file that fits the model, or run once with a network"
        ) from error
    return Backbone(label, state_hash(model), model, tokenize, device)


def _cached(tag: Mapping[str, Any]) -> str | None:
    """File of a tag's weights in the hub's cache, so that a cached tag needs no network; None if it has to be fetched.

    Raises:
        ConfigError: it is not cached and the hub cannot be reached, found out at once and not after a minute of retries.
    """
    if not tag.get("hf_hub"):
        return None
    repository, _, file = tag["hf_hub"].rpartition("/")
    names = [str(Path(file).with_suffix(".safetensors")), file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    for name in names:
        if isinstance(path := try_to_load_from_cache(repository, name), str):
            return path
    host = urlsplit(constants.ENDPOINT).hostname or "huggingface.co"
    try:
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        if not getproxies():
            socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ConfigError(
            f"backbone weights {repository} are not in the cache and {host} cannot be reached ({error}); "
            "set backbone.weights to a local file, or run once with a network"
        ) from error
    return None


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip reports on the root logger, which would give the whole process a handler; this keeps both away."""
    root, nobody = logging.getLogger(), logging.NullHandler()
    root.addHandler(nobody)
    try:
        yield
    finally:
        root.removeHandler(nobody)


def state_hash(model: nn.Module) -> str:
    """SHA-256 over names and bytes of the loaded tensors in order of name, whatever file they came from."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + b"\0" + str(value.dtype).encode() + b"\0")
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
